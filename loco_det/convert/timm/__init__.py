"""From a checkpoint of a ViT, ConvNeXt, Swin Transformer or RegNet to weights of timm's network in Detectron2.

``search`` finds the networks in a file, ``layouts`` says whose they are, and ``choice`` which one is meant.
``variants`` and ``matching`` find out which network of timm it is, ``names`` renames its weights by timm's own filter
functions, and ``pixels`` finds mean and std; ``source`` puts all of it together. ``references`` are the source networks
(``vit_definition``, ``convnext_definition``, ``torchvision_networks``), and ``proof`` compares their ``maps`` with
those of Detectron2's backbone.
"""
