# SPDX-License-Identifier: MIT
"""The three original modules, statement by statement as their author wrote them."""
# ruff: noqa

import math
import torch
from torch import nn


class EfficientChannelAttention(nn.Module):
    def __init__(self, c, b=1, gamma=2):
        super(EfficientChannelAttention, self).__init__()
        t = int(abs((math.log(c, 2) + b) / gamma))
        k = t if t % 2 else t + 1
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = nn.Conv1d(1, 1, kernel_size=k, padding=int(k / 2), bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        out = self.avg_pool(x)
        out = self.conv1(out.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        out = self.sigmoid(out)
        return out * x


class DynamicMultiKernelECA(nn.Module):
    def __init__(self, c, gamma_range=(2, 8), base_b=1):
        super().__init__()
        self.gamma_min, self.gamma_max = gamma_range
        self.base_b = base_b
        self.conv3 = nn.Conv1d(c, c, kernel_size=3, padding=1, groups=c, bias=False)
        self.conv5 = nn.Conv1d(c, c, kernel_size=5, padding=2, groups=c, bias=False)
        self.conv7 = nn.Conv1d(c, c, kernel_size=7, padding=3, groups=c, bias=False)
        self.weight_net = nn.Sequential(nn.Linear(c, 3), nn.Softmax(dim=1))
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        b, c, h, w = x.size()
        gamma = self.gamma_min + (self.gamma_max - self.gamma_min) * torch.sigmoid(
            torch.mean(x, dim=[2, 3], keepdim=True)
        )
        y = self.avg_pool(x).squeeze(-1)
        conv3_out = self.conv3(y)
        conv5_out = self.conv5(y)
        conv7_out = self.conv7(y)
        weights = self.weight_net(y.squeeze(-1))
        combined = (
            weights[:, 0].unsqueeze(-1).unsqueeze(-1) * conv3_out
            + weights[:, 1].unsqueeze(-1).unsqueeze(-1) * conv5_out
            + weights[:, 2].unsqueeze(-1).unsqueeze(-1) * conv7_out
        )
        out = self.sigmoid(combined).view(b, c, 1, 1)
        return x * out.expand_as(x)


class BidirectionalECA(nn.Module):
    def __init__(self, c, groups=8):
        super().__init__()
        self.groups = groups
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_forward = nn.Conv1d(1, 1, kernel_size=3, padding=1, groups=1, bias=False)
        self.conv_backward = nn.Conv1d(1, 1, kernel_size=3, padding=1, groups=1, bias=False)
        self.gate = nn.Sequential(nn.Linear(c, c // 16), nn.ReLU(), nn.Linear(c // 16, 2), nn.Softmax(dim=1))
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        b, c, h, w = x.size()
        y = self.avg_pool(x).squeeze(-1).permute(0, 2, 1)
        forward = self.conv_forward(y).sigmoid()
        reversed_y = torch.flip(y, dims=[-1])
        backward = torch.flip(self.conv_backward(reversed_y), dims=[-1]).sigmoid()
        gate_weights = self.gate(y.mean(dim=1))
        combined = gate_weights[:, 0].view(b, 1, 1) * forward + gate_weights[:, 1].view(b, 1, 1) * backward
        out = self.sigmoid(combined).permute(0, 2, 1).unsqueeze(-1)
        return x * out.expand_as(x)
