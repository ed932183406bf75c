"""Stage 1 as a Lightning task: train the visual tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spadnet.data.batch import Batch
from spadnet.losses.adversarial import (
    AdversarialGate,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from spadnet.losses.tokenizer import TokenizerLoss, TokenizerTerms
from spadnet.models.quantizer import cosine_temperature
from spadnet.models.tokenizer import Tokenizer
from spadnet.ranks import all_rows, from_first_rank
from spadnet.train.average import restart_average
from spadnet.train.code_start import kmeans, temperature_for_entropy
from spadnet.train.optim import OptimSettings
from spadnet.train.per_degree import metrics_per_degree
from spadnet.train.step_task import Note, StepTask, Update

DISCRIMINATOR_OPTIM = OptimSettings(lr=1e-3)


@contextmanager
def as_outside_of_a_step(device_type: str) -> Iterator[None]:
    """Draw batches as the loader does, whatever precision a step runs in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


class CodeStart(NamedTuple):
    """How the codebook starts.

    Attributes:
        share: Share of the training with the quantizer bypassed; 0 starts with random codes.
        entropy: Mean entropy in nats of the distribution over codes right after the start.
        num_steps: Number of steps whose batches are clustered.
    """

    share: float = 0.0
    entropy: float = 1.5
    num_steps: int = 16


class TokenizerTask(StepTask):
    """Train a tokenizer, with a discriminator where one is given.

    A step gets the micro-batches of one optimiser step, each of one degree; their gradients add up.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_steps: int,
        loss: TokenizerLoss | None = None,
        discriminator: nn.Module | None = None,
        optim: OptimSettings = OptimSettings(),  # noqa: B008  # an immutable tuple
        discriminator_optim: OptimSettings = DISCRIMINATOR_OPTIM,
        code_start: CodeStart = CodeStart(),  # noqa: B008  # an immutable tuple
        gate_threshold: float = 0.025,
        seed: int = 0,
    ) -> None:
        """Build the task.

        Args:
            tokenizer: Model to train.
            max_steps: Length of the training in optimiser steps.
            loss: Losses and their weights; the published ones by default.
            discriminator: Maps (image, degree) to patch logits; None trains without it.
            optim: Settings for the tokenizer.
            discriminator_optim: Settings for the discriminator.
            code_start: How the codebook starts.
            gate_threshold: Discriminator loss up to which the generator hears of it.
            seed: Seed of the quantizer's noise and of the clustering.
        """
        super().__init__(max_steps=max_steps, optim=optim)
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last_3d)
        self.loss = loss or TokenizerLoss()
        self.discriminator = discriminator
        self.gate = AdversarialGate(threshold=gate_threshold) if discriminator is not None else None
        self.discriminator_optim = discriminator_optim
        self.code_start = code_start
        self.seed = seed
        self.keep_average()

    @property
    def trained(self) -> Tokenizer:
        """The tokenizer."""
        return self.tokenizer

    @property
    def start_step(self) -> int:
        """Step at which the codebook starts."""
        return int(self.code_start.share * self.max_steps)

    def updates(self) -> list[Update]:
        """The tokenizer, and the discriminator where there is one."""
        updates = [Update(self.tokenizer, self.optim)]
        if self.discriminator is not None:
            names = "train/discriminator", "train/discriminator_gradient_norm"
            updates.append(Update(self.discriminator, self.discriminator_optim, *names))
        return updates

    def to_compile(self) -> list[nn.Module]:
        """Encoder and decoder: what lies between changes its ways, and what judges its inputs."""
        return [self.tokenizer.encoder, self.tokenizer.decoder]

    def generator(self, step: int, purpose: int) -> torch.Generator:
        """Random numbers that are a pure function of seed, step and purpose, alike on all ranks."""
        entropy = (self.seed * 1_000_003 + step) * 8_191 * 16 + purpose
        return torch.Generator(self.device).manual_seed(entropy % (1 << 63))

    # --- one step ---

    def before_step(self, step: int) -> None:
        """Start the codebook when it is time."""
        if 0 < step == self.start_step:
            self.start_codes(self.recent_batches(step))

    def accumulate(self, batch: Sequence[Batch], step: int) -> dict[str, Tensor | float]:
        """Gradients of the tokenizer, then those of the discriminator."""
        generator = self.generator(step, purpose=0)
        rebuilt, terms = [], []
        for micro in batch:
            part, reconstruction, codes = self.generator_terms(micro, step, generator)
            self.push(part.total, part.total / len(batch))
            rebuilt.append(reconstruction.detach())
            terms.append(TokenizerTerms(*(t.detach() for t in part)))
            of_samples = self.loss.of_samples(rebuilt[-1], micro.image)
            self.notes.append(Note(micro.keys, of_samples, codes))
        metrics = self.term_means(terms, batch)
        if self.discriminator is not None:
            metrics |= self.judge(self.discriminator, batch, rebuilt)
        return metrics

    def generator_terms(
        self, micro: Batch, step: int, generator: torch.Generator
    ) -> tuple[TokenizerTerms, Tensor, Tensor | None]:
        """Losses of one micro-batch, its reconstruction, and codes [B, d, h, w] if it has any."""
        # Convolutions in this layout are several times faster on CPU, with one channel 100 times.
        image = micro.image.to(memory_format=torch.channels_last_3d)
        degree = micro.degree
        logits, quantizer_losses, codes = None, None, None
        if step < self.start_step:
            latents = self.normalised_latents(image, degree)
            reconstruction = self.tokenizer.decode(latents, degree)
        else:
            temperature = cosine_temperature(step / self.max_steps)
            reconstruction, tokens = self.tokenizer(
                image, degree, temperature=temperature, generator=generator
            )
            logits, quantizer_losses, codes = tokens.logits, tokens.losses, tokens.index
        adversarial = None
        if self.discriminator is not None and self.gate is not None and self.gate.is_open:
            adversarial = hinge_generator_loss(self.discriminator(reconstruction, degree))
        terms = self.loss(
            reconstruction,
            image,
            logits,
            degree=degree,
            quantizer_losses=quantizer_losses,
            adversarial=adversarial,
            generator=generator,
        )
        return terms, reconstruction, codes

    def judge(
        self, discriminator: nn.Module, batch: Sequence[Batch], rebuilt: Sequence[Tensor]
    ) -> dict[str, Tensor | float]:
        """Gradients of the discriminator, by images and their reconstructions; what to log."""
        assert self.gate is not None
        discriminator.zero_grad()  # the generator's turn left gradients here
        losses = []
        for micro, fake in zip(batch, rebuilt, strict=True):
            loss = hinge_discriminator_loss(
                discriminator(micro.image, micro.degree), discriminator(fake, micro.degree)
            )
            losses.append(self.push(loss, loss / len(batch)))
        mean = torch.stack(losses).mean()
        self.gate.update(mean)
        return {"train/discriminator": mean, "train/gate_open": float(self.gate.is_open)}

    def term_means(
        self, terms: Sequence[TokenizerTerms], batch: Sequence[Batch]
    ) -> dict[str, Tensor | float]:
        """Mean of each term over the micro-batches, and the loss per degree."""
        pairs = zip(batch, terms, strict=True)
        losses = [(micro.degree, term.reconstruction) for micro, term in pairs]
        metrics: dict[str, Tensor | float] = {**metrics_per_degree("train/reconstruction", losses)}
        for name in TokenizerTerms._fields:
            label = "loss" if name == "total" else name
            metrics[f"train/{label}"] = torch.stack([getattr(t, name) for t in terms]).mean()
        return metrics

    # --- the codebook's start ---

    def normalised_latents(self, image: Tensor, degree: int) -> Tensor:
        """Latents [B, C, d, h, w] as the quantizer sees them."""
        z = self.tokenizer.encode(image, degree)
        return self.tokenizer.quantizer.norm(z.movedim(1, -1)).movedim(-1, 1)

    def recent_batches(self, step: int) -> Iterable[list[Batch]]:
        """This rank's batches of the last steps, drawn again: each is a function of its step."""
        dataset = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        for past in range(max(step - self.code_start.num_steps, 0), step):
            with as_outside_of_a_step(self.device.type):
                batch = dataset[past]
            here = [micro.image.to(device=self.device, dtype=self.dtype) for micro in batch]
            pairs = zip(batch, here, strict=True)
            yield [micro._replace(image=image).augmented() for micro, image in pairs]

    @torch.no_grad()
    def start_codes(self, batches: Iterable[Sequence[Batch]]) -> None:
        """Put the codes onto clusters of the latents that all ranks see in their ``batches``."""
        own = [
            self.normalised_latents(micro.image, micro.degree).movedim(1, -1).flatten(0, -2)
            for batch in batches
            for micro in batch
        ]
        codebook = self.tokenizer.quantizer.codebook
        kind = torch.promote_types(codebook.dtype, torch.float32)
        points = torch.cat([all_rows(latents).to(kind) for latents in own])
        size = self.tokenizer.quantizer.codebook_size
        centres = kmeans(points, size, generator=self.generator(self.start_step, purpose=1))
        temperature = temperature_for_entropy(points, centres, self.code_start.entropy)
        # Every rank has clustered the same, but a GPU may round differently each time.
        shared = from_first_rank(torch.tensor([temperature], device=self.device))
        self.tokenizer.quantizer.start_from(from_first_rank(centres), temperature=float(shared))
        if self.averaged is not None:
            restart_average(self.averaged, self.tokenizer)
