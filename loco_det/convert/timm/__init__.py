"""From a checkpoint of a ViT, ConvNeXt, Swin Transformer or RegNet to weights of timm's network in Detectron2.

``search`` finds the networks in a file, ``layouts`` says whose they are, ``variants`` which network of timm it is, and
``names`` renames its weights, by timm's own filter functions. ``pixels`` finds mean and std, ``source`` puts all of it
together. ``references`` are the source networks, and ``proof`` compares them with Detectron2's backbone.
"""
