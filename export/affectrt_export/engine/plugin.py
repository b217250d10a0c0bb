"""Kernels of ours as TensorRT plugins, compiled ahead of time: an engine holds them.

For TensorRT 10.9 and later. TensorRT reads the annotations of these functions, so they can't be strings.
"""

import tensorrt as trt
import tensorrt.plugin as trtp

from affectrt_export.engine.kernels import NAMESPACE, Kernel

NETWORK_FLAGS = 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
"""Of a network with such plugins."""

_registered: dict[str, str] = {}


def register(kernel: Kernel) -> None:
    """Make the parser know the kernel's node. Once in a process for each state size.

    Raises RuntimeError for other code of the same name: TensorRT can't forget what it has.
    """
    if kernel.operator in _registered:
        if _registered[kernel.operator] != kernel.sha256:
            raise RuntimeError(f"{kernel.operator}: another kernel of this name is registered already")
        return
    name = f"{NAMESPACE}::{kernel.operator}"

    def describe(
        sums: trtp.TensorDesc, w_h: trtp.TensorDesc, lengths: trtp.TensorDesc, h0: trtp.TensorDesc
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        batch, steps = sums.shape_expr[0], sums.shape_expr[1]
        y = trtp.from_shape_expr((batch, steps, kernel.hidden), trt.DataType.FLOAT)
        return y, trtp.from_shape_expr((batch, kernel.hidden), trt.DataType.FLOAT)

    def launch(
        sums: trtp.TensorDesc,
        w_h: trtp.TensorDesc,
        lengths: trtp.TensorDesc,
        h0: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        params = trtp.KernelLaunchParams()
        params.grid_x = sums.shape_expr[0]
        params.block_x = kernel.threads
        params.shared_mem = kernel.shared_bytes
        integers = trtp.SymIntExprs(2)
        integers[0] = trtp.SymInt32(sums.shape_expr[0])
        integers[1] = trtp.SymInt32(sums.shape_expr[1])
        return kernel.entry, kernel.ptx, params, integers

    trtp.register(name)(describe)
    trtp.aot_impl(name)(launch)
    _registered[kernel.operator] = kernel.sha256
