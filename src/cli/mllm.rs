//! `fedllava mllm ask`: one question about one image, the answer as it is written.

use std::io::Write;
use std::path::PathBuf;

use candle_core::DType;
use clap::{Args, Subcommand, ValueEnum};

use super::{machine, put};
use crate::data::{self, decode};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fsx;
use crate::key::Key;
use crate::mllm::ask::{Question, ask};
use crate::model::clip::Picture;
use crate::model::hub;
use crate::model::sample::Decoding;
use crate::model::vlm::Opened;

/// `mllm`.
#[derive(Args)]
pub struct Mllm {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Ask a multimodal model about an image; the answer streams to stdout.
    #[command(after_help = "Examples:
  fedllava mllm ask data/demo-llava picture.png \"Say in one sentence what this picture shows.\"
  fedllava mllm ask HuggingFaceTB/SmolVLM-256M-Instruct photo.jpg \"Which animal is it?\" --greedy
  fedllava mllm ask llava-hf/llava-1.5-7b-hf photo.jpg \"What is this?\" --json --dtype bf16")]
    Ask(Ask),
}

#[derive(Args)]
struct Ask {
    /// A LLaVA-1.5, SmolVLM, Qwen2.5-VL or MiniCPM-V 2.6 in Hugging Face layout: a folder, or an id.
    model: String,
    /// An image file.
    image: PathBuf,
    /// The question; with --raw-prompt the whole prompt, the model's own mark (`<image>`) where the image stands.
    question: String,
    /// Print one JSON object: token_ids, text, timings.
    #[arg(long)]
    json: bool,
    /// Always take the likeliest token (the default where no temperature is given).
    #[arg(long, conflicts_with_all = ["temperature", "top_p"])]
    greedy: bool,
    /// Draw tokens at this temperature.
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw from the likeliest tokens that together reach this probability.
    #[arg(long, requires = "temperature")]
    top_p: Option<f64>,
    /// What the draws come from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Longest answer [default: 256, or what the model's context leaves]
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Take the question as the whole prompt.
    #[arg(long)]
    raw_prompt: bool,
    /// A LoRA adapter, as PEFT writes it, folded into the model's weights.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the model computes in.
    #[arg(long, default_value = "f32")]
    dtype: Type,
    /// Where candle computes: cpu, auto, cuda, cuda:1.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Worker threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

/// Answers.
pub fn mllm(m: &Mllm, quiet: bool) -> Result<()> {
    let Action::Ask(a) = &m.action;
    let dtype = match a.dtype {
        Type::F32 => DType::F32,
        Type::F16 => DType::F16,
        Type::Bf16 => DType::BF16,
    };
    let cx = Context { dtype, ..machine::context_of(&a.device, a.threads, quiet)? };
    decode::on_threads(&cx, || answer(a, &cx))?
}

fn answer(a: &Ask, cx: &Context) -> Result<()> {
    // The image first: it is read in a moment, and the model may take minutes.
    let image = decode::rgb(&fsx::read(&a.image)?).at(|| a.image.display().to_string())?;
    let mut planes = Vec::new();
    decode::planes(&image, &mut planes);
    let (height, width) = (image.height() as usize, image.width() as usize);
    let mut decoding = Decoding {
        max_new_tokens: a.max_new_tokens.unwrap_or(Decoding::default().max_new_tokens),
        temperature: a.temperature.unwrap_or(0.0),
        top_p: a.top_p.unwrap_or(1.0),
        ..Decoding::default()
    };
    decoding.check()?;
    let folder = data::resolve(&a.model).or_else(|_| hub::resolve_until(&a.model, &cx.cancel))?;
    let opened = Opened::open(&folder, cx)?;
    let vlm = match &a.adapter {
        None => opened.frozen()?,
        Some(adapter) => {
            let (plan, params) = opened.adapter(adapter)?;
            opened.merged(&plan, &params)?
        }
    };
    let picture = Picture { height, width, pixels: planes.into() };
    let question = Question { picture, text: &a.question, raw: a.raw_prompt };
    if a.max_new_tokens.is_none() {
        let context = vlm.llm().config().max_position_embeddings;
        let room = context.saturating_sub(question.read(&*vlm)?.ids.len());
        decoding.max_new_tokens = decoding.max_new_tokens.min(room).max(1);
    }
    let heard = |piece: &str| if a.json { Ok(()) } else { write(piece) };
    let asked = ask(&*vlm, &question, &decoding, Key::from_seed(a.seed), cx, heard)?;
    if a.json {
        return put(&serde_json::json!({
            "token_ids": asked.token_ids,
            "text": asked.text,
            "timings": {
                "prompt_tokens": asked.prompt_tokens, "image_seconds": asked.image_seconds,
                "prefill_seconds": asked.prefill_seconds, "decode_seconds": asked.decode_seconds,
            },
        })
        .to_string());
    }
    write("\n")
}

/// Text at once, without waiting for a line's end.
fn write(piece: &str) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::environment(format!("cannot print: {e}"))),
        _ => Ok(()),
    }
}
