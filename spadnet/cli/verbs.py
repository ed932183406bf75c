"""The verbs of the command line: what must be known of each before it is imported."""

from typing import NamedTuple


class Verb(NamedTuple):
    """What the command line must know of a verb before it is imported.

    Attributes:
        module: Where its ``run(argv)`` is.
        summary: One line.
        usage: Arguments.
        example: A command that works.
        config: Name of its primary configuration, None if it takes none.
        notes: More lines for its help.
        words: Arguments that it takes alone, in place of KEY=VALUE.
    """

    module: str
    summary: str
    usage: str
    example: str
    config: str | None = None
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


VERBS = {
    "demo": Verb(
        "spadnet.cli.demo",
        "Train both stages on the embedded images and write one report",
        "[out=FOLDER] [KEY=VALUE]",
        "spadnet demo out=runs/demo",
        "demo",
    ),
    "preprocess": Verb(
        "spadnet.cli.preprocess",
        "Prepare images once and store them for fast random crops, or check such a store",
        "in=FOLDER|GLOB|CSV|JSONL out=FOLDER [recipe=NAME] [workers=N] [KEY=VALUE] "
        "| out=FOLDER verify=true | recipes",
        "spadnet preprocess in=scans out=stores/scans",
        "preprocess",
        (
            "The store has one compressed file per image below images/, catalogue.jsonl with one",
            "line per image, quarantine.jsonl with the files that cannot be used and why,",
            "fingerprint.txt and fingerprint.html, and SHA256SUMS. The frames of a 4D file are",
            "images of their own. A killed run is continued by the same command; files whose",
            "source and settings have not changed are kept. The bytes do not depend on workers.",
            "verify=true names damaged, missing and unknown files and fails if there are any.",
            "recipe=ixi in=FOLDER takes the images of a copy of a public data set, and what they",
            "are, from its recipe; what the copy lacks is named. spadnet preprocess recipes lists",
            "all recipes; recipe=FILE.yaml takes one of your own.",
            "Train from it: spadnet pretrain-tokenizer data=store data.path=stores/scans",
            "data.path=stores takes all stores of that folder.",
        ),
        words=("recipes",),
    ),
    "synthesize": Verb(
        "spadnet.cli.synthesize",
        "Write random images with known anatomy, in 2D or 3D at any spacing",
        "out=FOLDER [num=N] [size=[z,y,x]] [degree=N | spacing=[z,y,x]] [labels=FILE|FOLDER] "
        "[KEY=VALUE]",
        "spadnet synthesize out=synthetic num=8 degree=2",
        "synthesize",
        (
            "Writes images/ and labels/ (NIfTI in 3D, PNG in 2D), samples.jsonl with one line per",
            "image, and contact_sheet.png. A sample depends on the seed and its own number alone,",
            "so num can be raised later; files that are there are kept. source= is fields, shapes,",
            "mixed or labels; labels= takes label maps of yours, whose numbers are kept.",
            "A store of them: spadnet preprocess in=synthetic/samples.jsonl out=stores/synthetic",
            "Training without files: spadnet pretrain-tokenizer data=synthesis",
        ),
    ),
    "pretrain-tokenizer": Verb(
        "spadnet.cli.pretrain_tokenizer",
        "Train the visual tokenizer (stage 1)",
        "[experiment=NAME] [data=folder|store data.path=FOLDER] [out=FOLDER] [resume=auto] "
        "[KEY=VALUE]",
        "spadnet pretrain-tokenizer experiment=tokenizer_tiny trainer.max_steps=200",
        "pretrain_tokenizer",
    ),
    "pretrain-mim": Verb(
        "spadnet.cli.pretrain_mim",
        "Pre-train an encoder on the tokenizer's codes (stage 2), voxels or anatomies",
        "[objective=tokens|pixels|disentangle] [tokenizer=FOLDER] [experiment=NAME] [out=FOLDER] "
        "[resume=auto] [KEY=VALUE]",
        "spadnet pretrain-mim experiment=mim_tiny tokenizer=runs/tokenizer_tiny/tokenizer",
        "pretrain_mim",
        (
            "objective=tokens predicts the codes of tokenizer=FOLDER behind a mask; pixels the",
            "voxels (experiment=mae_tiny); disentangle tells the structures of synthetic anatomies",
            "apart, in two views of each (experiment=rasd_tiny, or rasd_unet_tiny for a U-Net).",
            "Several with weights: objective='{pixels: 1.0, disentangle: 0.5}'; 0 leaves one out.",
            "The encoder is in out/encoder, a U-Net in out/unet.",
        ),
    ),
    "finetune": Verb(
        "spadnet.cli.finetune",
        "Train a classifier, a regressor or a segmentor on labelled images",
        "data.path=FILE|FOLDER [experiment=NAME] [init=FOLDER] [out=FOLDER] [resume=auto] "
        "[KEY=VALUE]",
        "spadnet finetune experiment=pneumonia_tiny data.path=pneumoniamnist.npz",
        "finetune",
        (
            "data.path is a MedMNIST npz, a CSV table (columns image, label, split, patient), a",
            "JSON list of files, an nnU-Net or Decathlon folder, or one folder per class. What is",
            "best on validation is in out/best, the end in out/last; the best is scored once on",
            "the test split, in results.json and predictions.csv or, of label maps, cases.csv and",
            "masks/ (test=false leaves it out). Label maps want data.crop=[z,y,x] and",
            "data.classes=[...]. init= is the folder, or the run, of a trained encoder, U-Net or,",
            "with model=spad_vt_*, tokenizer. recipe.mode: full; probe and attention keep the",
            "encoder of init= as it is, lora learns corrections of low rank, which are merged into",
            "what is saved.",
        ),
    ),
    "evaluate": Verb(
        "spadnet.cli.evaluate",
        "Measure an encoder on labelled images beside its baselines, or study quality or spacing",
        "model=FOLDER data.path=FILE|FOLDER [experiment=evaluate_tiny] [study=quality|spacing] "
        "[out=FOLDER] [KEY=VALUE]",
        "spadnet evaluate model=runs/mim_tiny data.path=pneumoniamnist.npz data.size=[1,64,64]",
        "evaluate",
        (
            "k-NN, linear probe and fine-tuning with few and many labels, beside the same network",
            "from scratch, ImageNet features where they are installed, hand-made features, and a",
            "control that sees no anatomy. All choices are made on validation. out gets",
            "report.html and results.json (records); the same command again does what is missing.",
            "Several tasks: tasks={a: {path: a.npz}, b: {path: FOLDER, finetune: {...}}}",
            "protocols=[knn,probe,finetune] shares=[1%,10%,100%] or [5,20] cases of each class.",
            "study=quality degrades shares of the training and of the test images; study=spacing",
            "segments averaged slices with a network that was trained on thin ones.",
        ),
    ),
    "embed": Verb(
        "spadnet.cli.embed",
        "Write features of images by a trained encoder",
        "in=FILE|FOLDER|GLOB|CSV|JSONL out=FOLDER|FILE model=FOLDER "
        "[format=npz|safetensors|parquet] [KEY=VALUE]",
        "spadnet embed in=scans out=features model=runs/demo/mim/encoder",
        "embed",
        (
            "A folder gets one file per image: cls [C], tokens [D, H, W, C], spacing, degree, and",
            "where the tokens lie. A file gets one table of all cls. Files that cannot be",
            "used are listed with their reasons in quarantine.jsonl; the others go on. A second",
            "run does what is missing, has changed, or was made by another model.",
        ),
    ),
    "reconstruct": Verb(
        "spadnet.cli.reconstruct",
        "Send images through a tokenizer, and tell how much survives",
        "in=FILE|FOLDER|GLOB|CSV|JSONL out=FOLDER|FILE tokenizer=FOLDER [KEY=VALUE]",
        "spadnet reconstruct in=scans out=reconstructed tokenizer=runs/demo/tokenizer",
        "reconstruct",
        (
            "Each image is written on its own grid, with its own intensities: NIfTI, PNG for a",
            "picture. reconstruction.csv has PSNR and SSIM of each, of intensities in [0, 1] in",
            "the foreground's box; the means are printed.",
        ),
    ),
    "predict": Verb(
        "spadnet.cli.predict",
        "Segment or classify images with a fine-tuned model",
        "in=FILE|FOLDER|GLOB|CSV|JSONL out=FOLDER model=FOLDER [tta=true] [KEY=VALUE]",
        "spadnet predict in=scans out=masks model=runs/hippocampus_tiny",
        "predict",
        (
            "Masks are NIfTI on each image's own grid. predictions.csv has the voxels of each",
            "class, or classes and their probabilities, or values. Files that cannot be used are",
            "listed in quarantine.jsonl and stop nothing. Of a model that was trained on several",
            "files an image, a table has the columns of the training (image_columns=[a,b] where",
            "they are called otherwise), and CASE_0000.nii.gz, CASE_0001.nii.gz of a folder are",
            "one image.",
        ),
    ),
    "visualise": Verb(
        "spadnet.cli.visualise",
        "Picture what trained models see in images",
        "in=FILE|FOLDER|GLOB|CSV|JSONL out=FOLDER [model=FOLDER] [tokenizer=FOLDER] [KEY=VALUE]",
        "spadnet visualise in=chest.nii.gz out=maps model=runs/demo/mim/encoder",
        "visualise",
        (
            "model= gives NAME_pca (three components of the patch tokens as red, green, blue) and",
            "NAME_attention (of the class token); tokenizer= gives NAME_codes. Each is a .png, the",
            "image beside itself under the map, and a .nii.gz on the image's own grid.",
        ),
    ),
    "report": Verb(
        "spadnet.cli.report",
        "Make one page of a training run, also of one that is not finished",
        "RUN [out=FILE]",
        "spadnet report runs/mim_tiny",
        notes=(
            "Writes RUN/report.html: settings, versions, curves of losses, rates and speed, the",
            "validations, the newest pictures and the use of the codes. It needs no other file.",
        ),
    ),
    "export": Verb(
        "spadnet.cli.export",
        "Write a trained model for one spacing as ONNX or torch.export program, and check it",
        "model=FOLDER out=FILE degree=N|spacing=[z,y,x] [format=onnx|torch_export|monai_bundle]",
        "spadnet export model=runs/demo/mim/encoder spacing=[5,0.8,0.8] out=encoder.onnx",
        "export",
        (
            "The file takes image [B, C, D, H, W] in [0, 1], of any batch and of sizes that are",
            "multiples of a patch. An encoder gives cls and tokens, and logits where it has a",
            "classifier; a tokenizer gives reconstruction, codes and logits, a fine-tuned model",
            "logits. The input contract is in the file's metadata. A torch.export program wants",
            "two patches an axis.",
        ),
    ),
    "models": Verb(
        "spadnet.cli.models",
        "List the models, their sizes, and the weights that are here",
        "[in=FOLDER]",
        "spadnet models in=runs",
        notes=(
            "Weights are looked for in FOLDER (runs by default) and among downloads from hubs.",
        ),
    ),
    "export-weights": Verb(
        "spadnet.cli.export_weights",
        "Write checkpoint folders out of a training checkpoint",
        "in=RUN|FILE.ckpt [out=FOLDER] [part=tokenizer|encoder|mim] [licence=SPDX]",
        "spadnet export-weights in=runs/mim_tiny part=encoder",
        notes=(
            "The newest checkpoint of a run is taken. Stage 1 gives out/tokenizer; stage 2 gives",
            "out/encoder and, with its head, out/mim. By default out is the run's folder.",
        ),
    ),
    "replay": Verb(
        "spadnet.cli.replay",
        "Do one step of a training again, exactly, and find what was not finite",
        "RUN STEP",
        "spadnet replay runs/mim_tiny 1200",
        notes=(
            "Starts from the newest checkpoint before the step, or from what was kept of it when",
            "its loss or gradient was not finite (RUN/non_finite), and does the step under",
            "anomaly detection. Losses of the micro-batches and gradient norms are printed, and",
            "the first modules, operations and parameters that were not finite. RUN is left as it",
            "is. Call it where the training was called, for relative paths.",
        ),
    ),
    "doctor": Verb(
        "spadnet.cli.doctor",
        "Check this installation, or that a model is whole and computes what it should",
        "[out=FOLDER] | MODEL [MODEL ...]",
        "spadnet doctor",
        notes=(
            "MODEL is a checkpoint folder or a hub id: its keys, the SHA-256 of its weights and",
            "its golden outputs are checked. spadnet doctor runs/mim_tiny/encoder",
        ),
    ),
}
