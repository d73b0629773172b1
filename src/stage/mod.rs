//! The stages: each a function of its own configuration, its inputs and a context.
//!
//! ```text
//! open images ──captions──▶ text ──┐
//!             └─frozen CLIP─▶ ─────┴─ 1 pretrain ─▶ compact model P
//! labels ─▶ long tail ─▶ clients ─┐
//! P ──────────────────────────────── 2 finetune (federated rounds) ─▶ global model F
//! balanced server set + frozen teacher ── 3 align ─▶ aligned model A
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`pretrain`], [`pretrain_llm`] | stage 1, by contrast in CLIP's text space or through a large language model |
//! | [`finetune`] | stage 2: federated rounds, with records and checkpoints |
//! | [`align`], [`teach`], [`teach_mllm`] | stage 3 at the end, and who teaches in it |
//! | [`evaluate`], [`metrics`] | what a model does on test; figures of a classifier |
//! | [`probe`] | a linear probe: a control, and where a classifier can start |
//! | [`embed`] | what the frozen CLIP sees and reads, cached |
//! | [`caption`] | a pool becomes annotations |
//! | [`demo_models`], [`demo_llava`], [`demo_mllm`], [`demo_captions`] | what the demo ships with, made anew |
//!
//! **Stage 1, pretrain.** `L = contrast(z, t) + λ(1−a)(1−cos(W_s f(x), g))`, `z = a·W_s f(x) + (1−a)·g`: the compact
//! model f learns the captions' place t in CLIP's text space, beside a frozen CLIP g whose share falls as a(t) rises from
//! 0 to 1. This is our named substitution for pretraining through a large language model. With human class labels as texts
//! it is *supervised pretraining*, and tables say so.
//!
//! **Stage 1 through a language model** (`pretrain.objective = "llm"`): `H = a·W_s f(x) + (1−a)·W_c g(x)` stands where
//! LLaVA's image tokens stand, and the loss is the next-token loss of the image's annotation; LLaVA and its tower are
//! frozen. LLaVA-1.5 is our own definition on candle, from its Hugging Face layout (Llama or Vicuna; f32, f16, bf16); it
//! says what memory it needs and refuses to begin where less is free. `fedllava caption` asks three kinds of question
//! (`data/prompts`), drops degenerate text, dissimilar pairs and images near the test set, and writes `captions.jsonl` and
//! `kept.jsonl`; `pool.captions` takes either. Tower features and tokens are cached below `run.cache`.
//!
//! **Stage 2, finetune.** The [methods](crate::fl::methods) on clients with long-tailed, non-IID data, by CReFF's published
//! protocol: its long tail, its partition and its cohorts are replayed to the bit (numpy's generator included). Any of
//! them starts from stage 1 and goes with stage 3. `[unlabelled]` names the images that FedDF, FedBE and FEDIC distil on;
//! `finetune.tau_norm` repairs any method's classifier when it is judged; `federated.mode = "local"` and `"centralised"`
//! are the controls without a federation. Where clients keep a model of their own, its accuracy is judged too
//! (`personal.json`).
//!
//! **Stage 3, align.** `L = CE(y, p) + β · mean_i w_i · KL(q_i ‖ p_i)` on a small balanced set that the server holds, every
//! round or once. The weight w is dynamic: `constant`, `linear`, `cosine`, `step`, or `confidence` (`w_i = q_i[y_i]`: where
//! the teacher is right it teaches). The teacher is a frozen CLIP (with `prompts`: templates, a file such as
//! `data/prompts/imagenet80.txt`, or descriptions), a LLaVA by the likelihood of the class names (`kind = "mllm"`),
//! features from a file, or a classifier; `evaluate.teachers` lists more to judge alone; one that saw the benchmark's
//! labels is an *oracle*, and its rows stand apart.
//!
//! What the papers leave open is our choice and named as ours in the configs.

pub mod align;
pub mod caption;
pub mod demo_captions;
pub mod demo_llava;
pub mod demo_mllm;
pub mod demo_models;
pub mod embed;
pub mod evaluate;
pub mod finetune;
pub mod metrics;
pub mod pretrain;
pub mod pretrain_llm;
pub mod probe;
pub mod selection;
pub mod teach;
pub mod teach_mllm;
mod travel;

use crate::data::{Dataset, Loader};
use crate::error::Result;
use crate::key::Key;
use crate::nn::{Batch, Samples, View};

/// A data set behind a loader, as the training loop sees it.
pub struct Loaded<'a> {
    /// Images and labels.
    pub data: &'a Dataset,
    /// Normalisation and augmentation.
    pub loader: &'a Loader,
}

impl Samples for Loaded<'_> {
    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        self.loader.fill(self.data, ids, view, key, batch)
    }

    fn ahead(&self, ids: &[u32], view: View, key: Key) {
        self.loader.ahead(self.data, ids, view, key);
    }

    fn labels(&self) -> &[u32] {
        &self.data.labels
    }
}
