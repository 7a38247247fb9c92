"""Faster R-CNN on the nets of models/: the detector of the paper's Table 8 (appendix B)."""
