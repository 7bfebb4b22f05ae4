"""Generation: problems in, answers out; batched, left-padded, with a key-value cache, independent of batch and order.

prompts, sorted by length      pad pad  a   b   c  | x1 x2 x3 stop
(left-padded, positions        pad  d   e   f   g  | y1 y2 stop          rows that stopped leave the batch
start at the first token)      h   i   j   k   l  | z1 z2 z3 z4 ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from sftlab.data.conversation import Turn
from sftlab.data.encoder import Encoder
from sftlab.data.template import get_template
from sftlab.endpoint.client import ChatClient, ChatFailed
from sftlab.endpoint.replies import Chat
from sftlab.model.export import NOTE_FILE
from sftlab.plan.pool import seed_from
from sftlab.tasks.task import Answer, Problem, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Backend(Protocol):
    """Something that answers problems."""

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answers in groups, as they come; every sample of every problem once."""


class _Job:
    """One sample of one problem on its way through its turns."""

    def __init__(self, problem: Problem, sample: int, sampling: Sampling) -> None:
        self.problem, self.sample = problem, sample
        self.temperature = sampling.temperature if problem.temperature is None else problem.temperature
        self.texts: list[str] = []
        self.complete: list[bool] = []
        self.seed = seed_from("sample", sampling.seed, problem.uid, sample)

    def turns(self) -> list[Turn]:
        """The conversation up to the prompt that is due."""
        turns = []
        for prompt, text in zip(self.problem.prompts, [*self.texts, None], strict=False):
            turns.append(Turn("user", prompt))
            if text is not None:
                turns.append(Turn("assistant", text))
        return turns

    def answer(self) -> Answer:
        return Answer(self.problem.uid, self.sample, tuple(self.texts), tuple(self.complete))


class LocalModel:
    """Answers with a Hugging Face model in this process, by the template that the model was trained with.

    Args:
        model: A causal LM.
        encoder: Its tokenizer and template.
        batch_size: Prompts decoded side by side.
    """

    def __init__(self, model: PreTrainedModel, encoder: Encoder, batch_size: int = 64) -> None:
        self.model, self.encoder, self.batch_size = model.eval(), encoder, batch_size

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        batch_size: int = 64,
        device: str = "auto",
        trust_remote_code: bool = False,
        template: str = "",
    ) -> LocalModel:
        """Load a Hugging Face folder or id; bf16 on a GPU, fp32 on a CPU.

        ``template`` is used in place of the one that the folder was trained with or that its tokenizer has.

        Raises:
            ValueError: There is no model, or its tokenizer has no chat template.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoint: no model at {folder}: {str(error).splitlines()[0]}") from None
        noted = Path(folder) / NOTE_FILE
        name = json.loads(noted.read_text(encoding="utf-8"))["template"] if noted.is_file() else "tokenizer"
        return cls(model.to(device), Encoder(tokenizer, get_template(template or name, tokenizer)), batch_size)  # type: ignore[arg-type]

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer turn by turn, the prompts of a turn sorted by length."""
        waiting = [_Job(problem, i, sampling) for problem in problems for i in range(sampling.num_samples)]
        while waiting:
            prompts = [(self.encoder.prompt_ids(job.turns()), job) for job in waiting]
            prompts.sort(key=lambda pair: len(pair[0]))
            waiting = []
            for start in range(0, len(prompts), self.batch_size):
                batch = prompts[start : start + self.batch_size]
                self._decode([ids for ids, _ in batch], [job for _, job in batch], sampling.max_new_tokens)
                done = [job for _, job in batch if len(job.texts) == len(job.problem.prompts)]
                waiting += [job for _, job in batch if len(job.texts) < len(job.problem.prompts)]
                if done:
                    yield [job.answer() for job in done]

    @torch.inference_mode()
    def _decode(self, prompts: list[list[int]], jobs: list[_Job], max_new_tokens: int) -> None:
        """Add one answer to each job."""
        from transformers import DynamicCache

        device, stops = self.model.device, set(self.encoder.stop_ids)
        ids_BT, mask_BT = _left_padded(prompts, device)
        generators = [torch.Generator().manual_seed((job.seed + len(job.texts)) % 2**63) for job in jobs]
        room = self.model.config.max_position_embeddings - ids_BT.shape[1]
        outputs: list[list[int]] = [[] for _ in jobs]
        rows, cache, step_BT = list(range(len(jobs))), DynamicCache(config=self.model.config), ids_BT
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        for _ in range(min(max_new_tokens, room)):
            logits_BV = self.model(
                input_ids=step_BT, attention_mask=mask_BT, position_ids=position_BT[:, -step_BT.shape[1] :],
                past_key_values=cache, use_cache=True, logits_to_keep=1,
            ).logits[:, -1].float()  # fmt: skip
            chosen = _choose(logits_BV, [jobs[r].temperature for r in rows], [generators[r] for r in rows])
            alive = [i for i, token in enumerate(chosen) if token not in stops]
            for row, token in zip(rows, chosen, strict=True):
                outputs[row].append(token)
            if not alive:
                break
            if len(alive) < len(rows):
                keep = torch.tensor(alive, device=device)
                cache.batch_select_indices(keep)
                mask_BT, position_BT = mask_BT[keep], position_BT[keep]
                rows, chosen = [rows[i] for i in alive], [chosen[i] for i in alive]
            step_BT = torch.tensor(chosen, device=device)[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], 1)
            position_BT = torch.cat([position_BT, position_BT[:, -1:] + 1], 1)
        for job, output in zip(jobs, outputs, strict=True):
            ended = bool(output) and output[-1] in stops
            job.texts.append(self.encoder.decode(output[:-1] if ended else output))
            job.complete.append(ended)


def _left_padded(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    return ids_BT, mask_BT


def _choose(logits_BV: torch.Tensor, temperatures: list[float], generators: list[torch.Generator]) -> list[int]:
    """The next token of each row: the likeliest, or one drawn by the row's own generator."""
    chosen: list[int] = logits_BV.argmax(-1).tolist()
    for row, temperature in enumerate(temperatures):
        if temperature > 0:
            probability_V = torch.softmax(logits_BV[row].cpu() / temperature, -1)
            chosen[row] = int(torch.multinomial(probability_V, 1, generator=generators[row]))
    return chosen


_GROUP = 64  # problems asked of a server before their answers are handed on


class ServerModel:
    """Answers through any OpenAI-compatible server (vLLM and the like), which applies the model's own template.

    Args:
        client: The endpoint, with its cache and retries.
    """

    def __init__(self, client: ChatClient) -> None:
        self.client = client

    @classmethod
    def at(cls, url: str, model: str, cache: Path | None = None) -> ServerModel:
        """The model of that name at an endpoint such as http://localhost:8000/v1."""
        return cls(ChatClient(url, model, cache=cache))

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer turn by turn, one request per turn and sample.

        Raises:
            ValueError: Some requests failed after all tries; what was answered has been handed on before.
        """
        self.client.require_key()
        failed: list[str] = []
        jobs = [_Job(problem, i, sampling) for problem in problems for i in range(sampling.num_samples)]
        for start in range(0, len(jobs), _GROUP):
            group = waiting = jobs[start : start + _GROUP]
            while waiting:
                replies = self.client.chat_all([_chat(job, sampling.max_new_tokens) for job in waiting])
                for job, reply in zip(waiting, replies, strict=True):
                    if isinstance(reply, ChatFailed):
                        failed.append(f"{job.problem.uid}: {reply}")
                    else:
                        job.texts.append(reply.texts[0])
                        job.complete.append(reply.complete[0])
                answered = [
                    job for job, reply in zip(waiting, replies, strict=True) if not isinstance(reply, ChatFailed)
                ]
                waiting = [job for job in answered if len(job.texts) < len(job.problem.prompts)]
            done = [job.answer() for job in group if len(job.texts) == len(job.problem.prompts)]
            if done:
                yield done
        if failed:
            raise ValueError(f"{len(failed)} answers could not be had ({failed[0]}); the same call asks for them again")


def _chat(job: _Job, max_new_tokens: int) -> Chat:
    messages = tuple((turn.role, turn.text) for turn in job.turns())
    return Chat(messages, job.temperature, max_new_tokens, seed=job.seed % 2**31, sample=job.sample)
