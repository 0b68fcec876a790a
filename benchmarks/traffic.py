# SPDX-License-Identifier: MIT
"""The bytes model: what each kind of work must move at least. Every GB/s in this project comes from here.

With ``S_b = N C S itemsize`` bytes in one feature map, and the gates (C numbers per sample) not counted:

    forward            read x, write y                                    2 S_b
    backward           read x, read grad_y, write grad_x                  3 S_b
    training           forward, then backward                             5 S_b
    residual_forward   read x, read the residual, write y                 3 S_b
    residual_backward  read x, y, grad_y, write grad_x, grad_residual     5 S_b
    residual_training  both                                               8 S_b
    clone              read x, write its copy: what rates are compared with  2 S_b
"""

TRANSFERS = {"forward": 2, "backward": 3, "training": 5, "clone": 2}
TRANSFERS |= {"residual_forward": 3, "residual_backward": 5, "residual_training": 8}


def floor_bytes(work: str, elements: int, itemsize: int) -> int:
    """The least number of bytes that ``work`` (a key of ``TRANSFERS``) moves for a map of ``elements`` elements."""
    return TRANSFERS[work] * elements * itemsize


def gb_per_s(moved: int, seconds: float) -> float:
    """A rate in GB/s, with 1 GB = 10^9 bytes."""
    return moved / seconds / 1e9
