"""What training, probes, converter and detector share around their work: files, text, figures."""
