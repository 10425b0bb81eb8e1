"""The end-to-end path: methods that need gradients through CLIP's towers."""
