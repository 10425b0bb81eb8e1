"""Two examples for the --help of each command."""

EXAMPLES = {
    "auto": (
        "fewshot auto photos/",
        "fewshot auto photos/ --model tiny --methods zero-shot,gda",
    ),
    "bench": (
        "fewshot bench --methods gda,ridge --datasets dtd --shots 1,4,16",
        "fewshot bench --methods tip-adapter --set alpha=0.5,1,2 --out runs/alpha",
    ),
    "cache": (
        "fewshot cache",
        "fewshot cache --prune --max-size 2GB",
    ),
    "compare": (
        "fewshot compare gda ridge --results runs/bench",
        "fewshot compare a.npz b.npz --json",
    ),
    "datasets": (
        "fewshot datasets",
        "fewshot datasets dtd",
    ),
    "demo": (
        "fewshot demo",
        "fewshot demo --photos photos",
    ),
    "doctor": (
        "fewshot doctor",
        "fewshot doctor --json",
    ),
    "export": (
        "fewshot export adapter.safetensors --to onnx",
        "fewshot export adapter.safetensors --to open_clip --out exported",
    ),
    "extract": (
        "fewshot extract --dataset dtd",
        "fewshot extract --dataset photos/ --model tiny --views 4",
    ),
    "fit": (
        "fewshot fit gda --dataset dtd --shots 1,2,4,8,16 --seed 1,2,3",
        "fewshot fit ridge --shots 16 --set penalty=1 --save adapter.safetensors",
    ),
    "import": (
        "fewshot import features.npz --dataset mine --model ViT-B-16/openai",
        "fewshot import cached/ --dataset dtd --model RN50/openai --if-exists overwrite",
    ),
    "inspect": (
        "fewshot inspect features/dtd/ViT-B-16-openai.h5",
        "fewshot inspect adapter.safetensors",
    ),
    "methods": (
        "fewshot methods",
        "fewshot methods gda",
    ),
    "predict": (
        "fewshot predict adapter.safetensors new/ --format csv",
        "fewshot predict adapter.safetensors a.jpg b.jpg --top 1 --min-confidence 0.8",
    ),
    "report": (
        "fewshot report runs/bench",
        "fewshot report runs/bench --format latex --out report",
    ),
    "search": (
        "fewshot search --dataset dtd --shots 16 --budget 300k --out composition.toml",
        "fewshot search --dataset dtd --towers both --strategy random",
    ),
    "serve": (
        "fewshot serve adapter.safetensors",
        "fewshot serve adapter.safetensors --host 0.0.0.0 --port 8080",
    ),
    "synthesize": (
        "fewshot synthesize --dataset dtd --shots 16",
        "fewshot synthesize --generator 'ship beta=0.1' --per-class 32 --seed 1,2,3",
    ),
    "teach": (
        "fewshot teach photos/",
        "fewshot teach photos/ --classes 'red panda,raccoon' --open",
    ),
    "train": (
        "fewshot train clip-lora --dataset dtd --shots 4",
        "fewshot train coop --dataset dtd --official --save adapter.safetensors",
    ),
    "verify": (
        "fewshot verify features/dtd/ViT-B-16-openai.h5",
        "fewshot verify adapter.safetensors",
    ),
}
