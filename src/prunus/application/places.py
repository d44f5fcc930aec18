"""The five places at which a pass through a layer y = W x may be pruned by rules, as it runs.

- forward: the W that gives y.
- input_grad: the W that gives dL/dx.
- weight_grad: which entries of W get a gradient.
- output_grad: which entries of dL/dy go on, to dL/dx and dL/dW alike.
- activation: which entries of x are kept for dL/dW.
"""

from __future__ import annotations
