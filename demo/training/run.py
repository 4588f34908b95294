"""What every training run shares: the schedule, checkpoints that resume, the log, the averaged weights."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def cosine_rate(done: float, warm_up: float = 0.02) -> float:
    """Learning-rate factor at a share of the whole run: a short linear rise, then half a cosine to 2 %."""
    if done < warm_up:
        return max(done, 1e-4) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm_up) / (1 - warm_up))))


class Averaged:
    """Exponential moving average of weights, warm-started so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value.detach().to(self.weights[name].dtype), 1 - decay)


class Run:
    """One part's training: a budget of steps of `loss_of_step(index) -> loss, figures`, resumable at any of them."""

    def __init__(
        self,
        name: str,
        folder: Path,
        module: nn.Module,
        steps: int,
        rate: float,
        *,
        decay: float = 0.998,
        save_seconds: float = 120.0,
        warm_start: dict[str, Tensor] | None = None,
        basis: str = "",
        tag: str = "",
    ) -> None:
        """basis: names what this part stands on; a checkpoint of another basis lends its weights and nothing else.

        tag: goes into the checkpoint's name, where those of another tag are of no use.
        """
        self.basis = basis
        self.name, self.module, self.steps, self.rate = name, module, steps, rate
        self.path = folder / f"{name}{tag and '-'}{tag}.pt"
        self.save_seconds = save_seconds
        self.log: list[dict] = []
        self.done, self.seconds = 0, 0.0
        if warm_start is not None:
            module.load_state_dict({key: value.float() for key, value in warm_start.items()})
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.averaged = Averaged(module, decay)
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.averaged.weights = {
            key: value.to(next(self.module.parameters()).device) for key, value in state["averaged"].items()
        }
        if state.get("basis", "") != self.basis:
            print(f"{self.name}: what it stands on has changed; starts again from its weights", flush=True)
            return
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds, self.log = state["done"], state["seconds"], json.loads(state["log"])
        print(f"{self.name}: goes on at step {self.done} of {self.steps}", flush=True)

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "averaged": self.averaged.weights,
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "log": json.dumps(self.log),
            "basis": self.basis,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def train(self, loss_of_step: Callable[[int], tuple[Tensor, dict[str, float]]], report_every: int = 50) -> None:
        """loss_of_step(index) returns the loss to go down and figures to log. Saves now and then, and at the end."""
        started = saved = time.monotonic()
        before = self.seconds
        sums: dict[str, float] = {}
        count = 0
        while self.done < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * cosine_rate(self.done / self.steps)
            loss, figures = loss_of_step(self.done)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.done += 1
            self.averaged.update(self.module, self.done)
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + float(value)
            self.seconds = before + time.monotonic() - started
            count += 1
            if self.done % report_every == 0 or self.done == self.steps:
                entry = {key: round(value / count, 5) for key, value in sums.items()}
                self.log.append({"step": self.done, "seconds": round(self.seconds, 1), **entry})
                print(f"{self.name} {self.done}/{self.steps} {self.seconds:.0f} s {entry}", flush=True)
                sums, count = {}, 0
            if time.monotonic() - saved > self.save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
