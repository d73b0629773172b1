//! One question about one image, answered as it is written.

use serde::Serialize;

use crate::error::Result;
use crate::exec::Context;
use crate::key::Key;
use crate::model::chat::Message;
use crate::model::clip::Picture;
use crate::model::sample::Decoding;
use crate::model::vlm::{Ask, Prompt, Vlm};

/// A question.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The image.
    pub picture: Picture<'a>,
    /// The question, or the whole prompt.
    pub text: &'a str,
    /// Whether `text` is the whole prompt, with the model's own mark for a picture in it (`<image>`), instead of a
    /// question to be put in the model's conversation form.
    pub raw: bool,
}

/// The answer, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Asked {
    /// New tokens, the one that ended the answer included.
    pub token_ids: Vec<u32>,
    /// The answer.
    pub text: String,
    /// Tokens of the prompt, the image's places among them.
    pub prompt_tokens: usize,
    /// Seconds for the image.
    pub image_seconds: f64,
    /// Seconds for the prompt.
    pub prefill_seconds: f64,
    /// Seconds for the new tokens.
    pub decode_seconds: f64,
}

impl Question<'_> {
    /// The prompt as this model reads it.
    pub fn prompt(&self, vlm: &dyn Vlm) -> Result<String> {
        match self.raw {
            true => Ok(self.text.to_string()),
            false => vlm.write(&[Message::about(1, self.text)], true),
        }
    }

    /// Its tokens and pixels; a raw prompt without a mark is asked without the picture.
    pub fn read(&self, vlm: &dyn Vlm) -> Result<Prompt> {
        let text = self.prompt(vlm)?;
        let pictures = std::slice::from_ref(&self.picture);
        vlm.read(&text, if text.contains(vlm.mark()) { pictures } else { &[] })
    }
}

/// Asks; `heard` gets the text piece by piece, never half a character.
pub fn ask(
    vlm: &dyn Vlm,
    question: &Question,
    decoding: &Decoding,
    key: Key,
    cx: &Context,
    mut heard: impl FnMut(&str) -> Result<()>,
) -> Result<Asked> {
    let began = std::time::Instant::now();
    let mut prompt = question.read(vlm)?;
    vlm.look(&mut prompt)?;
    let image_seconds = began.elapsed().as_secs_f64();
    let mut stream = vlm.tokenizer().stream()?;
    let asked = Ask { prompts: &[&prompt], keys: &[key], decoding, cancel: &cx.cancel };
    let written = vlm.answer(&asked, &mut |_, token| heard(&stream.push(token)?))?;
    heard(&stream.finish()?)?;
    let token_ids = written.tokens.into_iter().next().unwrap_or_default();
    Ok(Asked {
        text: vlm.text(&token_ids)?,
        token_ids,
        prompt_tokens: prompt.ids.len(),
        image_seconds,
        prefill_seconds: written.prefill.as_secs_f64(),
        decode_seconds: written.decode.as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_streamed_answer_is_the_answer_and_a_raw_prompt_is_taken_as_it_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/default");
        let cx = Context::cpu(1);
        let llava = crate::model::vlm::Opened::open(&folder, &cx).unwrap().frozen().unwrap();
        let pixels: Vec<u8> = (0..3 * 256u32).map(|i| (i * 7 % 251) as u8).collect();
        let picture = Picture { height: 16, width: 16, pixels: pixels.into() };
        let run = |text: &str, raw: bool| {
            let mut streamed = String::new();
            let question = Question { picture: picture.clone(), text, raw };
            let got = ask(&*llava, &question, &Decoding::greedy(12), Key::from_seed(1), &cx, |piece| {
                streamed.push_str(piece);
                Ok(())
            });
            (got.unwrap(), streamed)
        };
        let (asked, streamed) = run("What is it?", false);
        assert_eq!(streamed.trim(), asked.text);
        assert!(!asked.token_ids.is_empty() && asked.prompt_tokens > 9);
        let (raw, _) = run("USER: <image>\nWhat is it? ASSISTANT:", true);
        assert_eq!((raw.token_ids, raw.text), (asked.token_ids, asked.text));
        assert_ne!(run("What is it?", true).0.prompt_tokens, asked.prompt_tokens);
    }
}
