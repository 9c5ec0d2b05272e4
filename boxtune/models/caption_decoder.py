"""Writes a caption for each object that the detection head finds. Its words are those of the language model: input and output
are tied to the token embeddings, which stay as they are."""

import torch
from torch import Tensor, nn
from transformers import DetrConfig
from transformers.models.detr.modeling_detr import DetrDecoderLayer

# Longest caption, in tokens.
MAX_TOKENS = 48


class CaptionDecoder(nn.Module):
    """Decoder layers that read an object's query, its caption so far, and the memory of the head.

    config: that of the head's own layers. llm_hidden_size: of the token embeddings.
    """

    def __init__(self, config: DetrConfig, llm_hidden_size: int, layers: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(MAX_TOKENS, config.d_model) * 0.02)
        self.into = nn.Sequential(nn.LayerNorm(llm_hidden_size), nn.Linear(llm_hidden_size, config.d_model))
        self.layers = nn.ModuleList(DetrDecoderLayer(config) for _ in range(layers))
        self.out = nn.Linear(config.d_model, llm_hidden_size)

    def forward(self, queries: Tensor, memory: Tensor, is_memory: Tensor, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """(K, L + 1, V) logits of the next token after the query and after each of the L tokens.

        queries: (K, d). memory: (K, M, d). is_memory: (K, M). tokens: (K, L) ids. embeddings: (V, H) of the language model.
        """
        embeddings = embeddings.detach()
        words = self.into(embeddings[tokens].float())
        states = torch.cat([queries[:, None], words], dim=1)
        length = states.shape[1]
        places = self.positions[:length].expand(len(states), -1, -1)
        before = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()
        for layer in self.layers:
            states = layer(
                states,
                attention_mask=before[None, None],
                object_queries_position_embeddings=places,
                encoder_hidden_states=memory,
                encoder_attention_mask=is_memory[:, None, None],
            )
        return self.out(states) @ embeddings.float().T

    @torch.no_grad()
    def write(
        self, queries: Tensor, memory: Tensor, is_memory: Tensor, embeddings: Tensor, end_id: int
    ) -> list[list[int]]:
        """The token ids of each query's caption, the most likely one at each step, without the end token."""
        tokens = torch.zeros(len(queries), 0, dtype=torch.long, device=queries.device)
        while tokens.shape[1] < MAX_TOKENS - 1 and not (tokens == end_id).any(1).all():
            logits = self(queries, memory, is_memory, tokens, embeddings)[:, -1]
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        return [row[: row.index(end_id)] if end_id in row else row for row in tokens.tolist()]
