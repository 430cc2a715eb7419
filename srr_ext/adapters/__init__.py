"""srr_ext inside other libraries: Torch-Pruning, Lightning and the Trainer of Hugging Face transformers.

Nothing here is imported by the rest of the package, and each module needs the library that it is named after:
``srr_ext.adapters.torch_pruning``, ``srr_ext.adapters.lightning``, ``srr_ext.adapters.transformers``.
"""
