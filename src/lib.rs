//! fedllava: multimodal-LLM-assisted federated learning on long-tailed, non-IID data.
//!
//! Modules stand in layers: each imports only modules above it in this list (`tests/layers.rs` enforces it). Those up to
//! `nn` lie in `src/core`, a crate of its own: it is optimised in tests too, and a change above it does not compile it again.
//!
//! | module | what |
//! |---|---|
//! | [`error`] [`key`] [`fsx`] [`exec`] | one typed error · randomness as a key path (Philox) · atomic files, texts, digests, locks · workers, cancellation, events |
//! | [`nn`] | flat parameters; a network as a list of operations; its interpreters in [`nn::engine`]: `candle` (autograd) and `cpu` (our engine); [`nn::kernels`], which the engine and the language models share; losses, optimisers, the dynamic weight |
//! | [`pickle`] [`shipped`] | Python's pickles, read and never run · what the binary carries |
//! | [`data`] | benchmarks, long tail, partitions, splits, batches, pools, captions, cached features, duplicates, the demo's world |
//! | [`model`] | ResNets, CNN, MLP as operation lists; CLIP, Llama, LLaVA on candle, by their published names; [`model::vlm`]: LLaVA, SmolVLM, Qwen2.5-VL, MiniCPM-V behind one trait; [`model::lora`] |
//! | [`mllm`] | a multimodal LLM at work: prompts, captioners, filters |
//! | [`run`] | run directories, records, checkpoints, times |
//! | [`fl`] | the round loop and the training loop, once each; objectives, feeds, aggregation, alignment; [`fl::methods`]: one file a method; [`fl::way`]: what happens to updates on their way, one file a link |
//! | [`task`] | what is trained where it is no classifier: the LoRA adapters of a multimodal LLM |
//! | [`stage`] | pretrain, finetune, align, evaluate, embed, caption: each a function |
//! | [`config`] | all sections composed, overrides, names from other tools |
//! | [`pipeline`] | configuration → stages → numbers on disk |
//! | [`report`] | run directories → tables, contrasts with intervals, figures, a page |
//! | [`cli`] | arguments → what the person sees |
//!
//! # Adding a federated algorithm
//!
//! Three files: `src/fl/methods/<name>.rs`, one line in `src/fl/methods/mod.rs`, a config. An algorithm is values in,
//! values out, and FedAvg is its default: what is not written is FedAvg's. So FedProx is its `brief` alone, what a client
//! does, as data:
//!
//! ```
//! use fedllava::error::Result;
//! use fedllava::fl::{About, Algorithm, Brief, ClientId, Cost, Exchange, Named, Now, Sizes};
//! use fedllava::nn::{Params, Pull};
//!
//! struct Near {
//!     mu: f32,
//! }
//!
//! impl Algorithm for Near {
//!     fn about(&self) -> About {
//!         About { paper: "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020", leaves: "" }
//!     }
//!
//!     fn brief(&self, _: &Params, _: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
//!         let mut train = Brief::training(now);
//!         train.pulls.push(Pull::Proximal { mu: self.mu, to: 0, over: None }); // slot 0 is the server's model
//!         Ok(Brief::train(train, vec![]))
//!     }
//! }
//!
//! // What it sends is FedAvg's: the model down and up, and no pass of the network more.
//! let sizes = Sizes { model: 78_062, head: 650, classes: 10, features: 64, samples: 620, held: 10, epochs: 2,
//!     forward: 12_500_000, texts: 0 };
//! let Cost { down, up, extra } = Near { mu: 0.01 }.cost(&sizes);
//! assert_eq!((down, up, extra), (78_062, 78_062, 0));
//! ```
//!
//! A loss of your own is an [`Objective`](fl::Objective) in the same file: it sees one batch's logits, feature,
//! classifier, labels and class counts, and adds its gradient; it runs on every engine. `focal.rs` is the shortest one,
//! `moon.rs` has a frozen network beside, `fedyoyo/` two views and two exchanges a round, `creff.rs` a measuring step and
//! work on the server, `fedloge/` a head that stays on the client, `fedic/` three trainings on the server's own data,
//! `scaffold.rs` state on both sides. `tests/methods.rs` runs whatever the registry names; add numbers of the method's
//! own code to `tests/golden/methods`.
//!
//! # Adding a data set
//!
//! A reader in `src/data/<name>.rs` gives a [`Benchmark`](data::Benchmark): two [`Dataset`](data::Dataset)s of bytes and
//! labels. Then a kind in [`DataConfig`](data::DataConfig), an arm in [`data::load`], and, if it is fetched by hand, a
//! line in `src/cli/doctor.rs`. Long tail, partition, server set and groups come after it and are the same for all:
//!
//! ```
//! use fedllava::data::{Images, LongTailConfig, PartitionConfig, ServerSetConfig, Split, ValidationConfig};
//! use fedllava::data::partition::DirichletConfig;
//! use fedllava::key::Key;
//!
//! # fn main() -> fedllava::error::Result<()> {
//! let images = Images::new([3, 8, 8], vec![0; 300 * 3 * 8 * 8])?; // (n, channels, height, width), bytes
//! let labels: Vec<u32> = (0..300).map(|i| i % 3).collect();
//! let tail = LongTailConfig { imbalance: 10.0, ..LongTailConfig::default() };
//! let dirichlet = PartitionConfig::Dirichlet(DirichletConfig { clients: 4, min_size: 1, ..DirichletConfig::default() });
//! let (server, validation) = (ServerSetConfig { per_class: Some(5), ..Default::default() }, ValidationConfig::default());
//! let split = Split::draw(&labels, 3, &tail, &dirichlet, &server, &validation, Key::from_seed(7))?;
//! assert_eq!((images.len(), split.clients.len(), split.server.len()), (300, 4, 15));
//! let counts = split.global_counts(); // of each class, over all clients
//! assert!(counts[0] > counts[1] && counts[1] > counts[2], "{counts:?}");
//! # Ok(())
//! # }
//! ```
//!
//! # Adding a metric
//!
//! A field of [`Evaluation`](stage::metrics::Evaluation), computed in `of` and named in `figures`: from there it reaches
//! `metrics.jsonl`, `metrics.csv`, TensorBoard and `eval.json` by its name.
//!
//! # Adding a table
//!
//! A TOML in `configs/tables` alone: `[sweep]` says which runs there are, `[table]` what makes its rows and columns,
//! `[[contrasts]]` which rows are compared. `fedllava sweep` makes it, `fedllava report` prints it, also half done. A
//! published number to stand beside ours is an entry of `data/published.toml`, with its source.
//!
//! # Adding a config key
//!
//! A field with a doc line in the section's struct, beside the code that reads it: the doc is what `fedllava explain` and
//! `config list` say. Its default in `Default`, its range in the section's `check`; other tools' names for it in
//! [`config::foreign`]. Unknown keys are refused with the valid ones:
//!
//! ```
//! use fedllava::config::Config;
//!
//! let typo = toml::toml! { [federated] round = 3 };
//! let e = Config::from_table(typo).unwrap_err().to_string();
//! assert!(e.contains("unknown key `round`") && e.contains("did you mean `rounds`?"), "{e}");
//! ```

pub use fedllava_core::{error, exec, fsx, key, nn};

pub mod pickle;
pub mod shipped;
pub mod data;
pub mod model;
pub mod mllm;
pub mod run;
pub mod fl;
pub mod task;
pub mod stage;
pub mod config;
pub mod pipeline;
pub mod sweep;
pub mod report;
pub mod cli;
