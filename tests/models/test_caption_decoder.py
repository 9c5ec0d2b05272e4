"""The caption decoder of the detection head: it looks at no later token, learns a caption, and writes it."""

import torch
from transformers import DetrConfig

from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.models.caption_decoder import CaptionDecoder
from boxtune.models.detection_head import DetectionHead, Found, HeadShape, Layer
from boxtune.training.detection_loss import caption_loss
from tests.training.test_detection_loss import make_targets, some_boxes


def decoder(layers=2) -> CaptionDecoder:
    torch.manual_seed(0)
    config = DetrConfig(
        d_model=32, decoder_attention_heads=4, decoder_ffn_dim=64, attn_implementation="sdpa", dropout=0.0
    )
    return CaptionDecoder(config, 24, layers).eval()


def test_later_tokens_and_padded_memory_change_nothing():
    writer, embeddings = decoder(), torch.randn(50, 24)
    queries, memory, tokens = torch.randn(2, 32), torch.randn(2, 7, 32), torch.randint(0, 50, (2, 5))
    is_memory = torch.arange(7) < torch.tensor([[7], [4]])
    logits = writer(queries, memory, is_memory, tokens, embeddings)
    assert logits.shape == (2, 6, 50)
    other_tokens, other_memory = tokens.clone(), memory.clone()
    other_tokens[:, 3:] = 7
    other_memory[1, 4:] = 100
    other = writer(queries, other_memory, is_memory, other_tokens, embeddings)
    torch.testing.assert_close(other[:, :4], logits[:, :4], rtol=0, atol=1e-5)
    assert not torch.allclose(other[:, 4:], logits[:, 4:])


def test_a_head_learns_to_caption_two_objects():
    """Each object's caption follows from its query; the head's loss reaches zero, and it writes what it learned."""
    torch.manual_seed(0)
    head = DetectionHead(HeadShape(24, hidden_size=32, queries=3, caption_layers=1))
    boxes = torch.tensor(some_boxes(3, 0))
    layer = Layer(boxes[None], torch.zeros(1, 3, 1), torch.ones(1, 3, dtype=torch.bool), has_classes=True)
    found = Found(
        layer,
        boxes[None, :, :2],
        [layer],
        torch.randn(1, 3, 32),
        torch.randn(1, 4, 32),
        torch.ones(1, 4, dtype=torch.bool),
    )
    targets = make_targets([boxes[[2, 0]].tolist()], [0, 0], classes=1)
    captions = [[5, 9, 1], [6, 1, IGNORE_INDEX]]
    targets["captions"] = torch.tensor(captions)
    embeddings = torch.randn(12, 24)
    optimizer = torch.optim.Adam(head.captions.parameters(), lr=1e-2)
    for _ in range(60):
        loss = caption_loss(head, found, targets, embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    written = head.captions.write(
        found.queries[0], found.memory.expand(3, -1, -1), found.is_memory.expand(3, -1), embeddings, 1
    )
    assert (written[2], written[0]) == ([5, 9], [6])
