//! Pretraining through a large language model: the compact encoder learns to make a frozen LLaVA say of an image what
//! its annotation says, with the frozen tower's help fading.
//!
//! `H = a · W_s r(f_θ(x)) + (1 − a) · W_c g(x)` in the language model's embedding space; the loss is the next-token
//! cross-entropy of the annotation's tokens given image and instruction, its mean over all answer tokens of a batch.
//! g is the tower's hidden state, W_c starts as (and by default stays) the model's own projector, so that at a = 0 the
//! loss is LLaVA's own. f_θ(x) is the student's last spatial map `(C, h, w)`.
//!
//! One grid: LLaVA has one place for each of the tower's patches (g × g, row by row). r brings the student's map to
//! that grid by bilinear resampling with antialiasing (`torch.nn.functional.interpolate(mode="bilinear",
//! antialias=True)`); where the model sees the class token too, its place gets the mean of the map. (The method's
//! formula was not published; this is our reading, see the docs.)

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Place, Result};
use crate::key::Key;
use crate::model::clip::Tokens;
use crate::model::clip::config::Activation;
use crate::model::layers::Linear;
use crate::model::llava::Llava;
pub use crate::model::llava::Sample;
use crate::nn::params::{Layout, Params, Role};

/// From the student's channels to the language model's width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StudentProjection {
    /// One linear layer.
    #[default]
    Linear,
    /// Two with a GELU between, as LLaVA-1.5's own.
    Mlp,
}

/// A step's loss and gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// The loss in nats per answer token.
    pub loss: f64,
    /// With respect to the student's map, `(rows, C, h, w)`.
    pub map: Vec<f32>,
    /// With respect to the projections, in their layout's order.
    pub projections: Vec<f32>,
}

/// One batch, as a step shows it to the language model.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The annotations, `(rows,)`.
    pub samples: &'a [&'a Sample],
    /// The student's maps, `(rows, C, h, w)`.
    pub map: &'a [f32],
    /// The tower's features, `(rows, places, layers · width)`; needed where a < 1.
    pub tower: Option<&'a Tensor>,
    /// The student's weight, in `[0, 1]`.
    pub a: f64,
}

/// The objective for students whose map has one shape.
pub struct CaptionLoss<'a> {
    llava: &'a Llava,
    shape: [usize; 3],
    kind: StudentProjection,
    resample: Linear,
    layout: Arc<Layout>,
}

/// The projections of one step, as leaves of the graph.
struct Leaves {
    student: Vec<Linear>,
    tower: Option<[Linear; 2]>,
    vars: Vec<Var>,
}

impl<'a> CaptionLoss<'a> {
    /// For maps of shape `(C, h, w)`. `train_tower` trains W_c too.
    pub fn new(llava: &'a Llava, shape: [usize; 3], kind: StudentProjection, train_tower: bool) -> Result<Self> {
        let [channels, h, w] = shape;
        if channels * h * w == 0 {
            return Err(Error::input(format!("a student's map of shape {shape:?} has no element")));
        }
        let config = llava.config();
        let (width, places) = (config.text.hidden_size, config.image_tokens());
        let matrix = resampling((h, w), config.vision.grid(), config.select == Tokens::All);
        let resample = Linear::new(Tensor::from_vec(matrix, (places, h * w), llava.device())?, None);
        let mut layout = Layout::default();
        let mut layer = |name: &str, input: usize, output: usize, bias: bool| -> Result<()> {
            layout.push(format!("{name}.weight"), &[output, input], Role::Weight)?;
            if bias {
                layout.push(format!("{name}.bias"), &[output], Role::Weight)?;
            }
            Ok(())
        };
        match kind {
            StudentProjection::Linear => layer("student", channels, width, true)?,
            StudentProjection::Mlp => {
                layer("student.0", channels, width, true)?;
                layer("student.2", width, width, true)?;
            }
        }
        if train_tower {
            let input = config.layers.len() * config.vision.hidden_size;
            layer("projector.linear_1", input, width, config.projector_bias)?;
            layer("projector.linear_2", width, width, config.projector_bias)?;
        }
        Ok(CaptionLoss { llava, shape, kind, resample, layout: Arc::new(layout) })
    }

    /// Names and shapes of the projections.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Fresh projections: W_s uniform in ±1/√inputs (PyTorch's default), W_c the model's own projector.
    pub fn init(&self, key: Key) -> Result<Params> {
        let mut rng = key.rng();
        let mut data = vec![0.0f32; self.layout.len()];
        let own = self.llava.projector().tensors();
        let mut bound = 1.0;
        for entry in self.layout.entries() {
            let target = &mut data[entry.range()];
            if let Some(name) = entry.name.strip_prefix("projector.") {
                let missing = || Error::defect(format!("projector: no {name}"));
                let (_, tensor) = own.iter().find(|(n, _)| n == name).ok_or_else(missing)?;
                target.copy_from_slice(&tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
                continue;
            }
            // A bias follows its weight and has its bound.
            if let [_, inputs] = entry.shape.as_slice() {
                bound = 1.0 / (*inputs as f32).sqrt();
            }
            target.iter_mut().for_each(|v| *v = bound * (2.0 * rng.f32() - 1.0));
        }
        Params::new(self.layout.clone(), data)
    }

    /// The loss alone, in nats per answer token; no graph is built.
    pub fn loss(&self, shown: Shown, projections: &Params) -> Result<f64> {
        let map = self.map(&shown)?;
        let loss = self.forward(&shown, &map, &self.leaves(projections, false)?)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// The loss and its gradients with respect to the student's map and the projections; the language model and the
    /// tower are frozen, their layers computed again on the way back.
    pub fn gradients(&self, shown: Shown, projections: &Params) -> Result<Gradients> {
        let map = Var::from_tensor(&self.map(&shown)?)?;
        let leaves = self.leaves(projections, true)?;
        let loss = self.forward(&shown, map.as_tensor(), &leaves)?;
        let store = loss.backward()?;
        let flat = |var: &Var, name: &str| -> Result<Vec<f32>> {
            // A factor of zero takes a branch out of the graph; any other absence is a lost gradient.
            let factor = if name.starts_with("projector.") { 1.0 - shown.a } else { shown.a };
            match store.get(var.as_tensor()) {
                Some(gradient) => Ok(gradient.flatten_all()?.to_vec1::<f32>()?),
                None if factor == 0.0 => Ok(vec![0.0; var.elem_count()]),
                None => Err(Error::defect(format!("pretraining through the language model: {name} got no gradient"))),
            }
        };
        let mut all = Vec::with_capacity(self.layout.len());
        for (var, entry) in leaves.vars.iter().zip(self.layout.entries()) {
            all.extend(flat(var, &entry.name)?);
        }
        Ok(Gradients {
            loss: f64::from(loss.to_scalar::<f32>()?),
            map: flat(&map, "the student's map")?,
            projections: all,
        })
    }

    fn map(&self, shown: &Shown) -> Result<Tensor> {
        let [c, h, w] = self.shape;
        let rows = shown.samples.len();
        if rows == 0 || shown.map.len() != rows * c * h * w {
            return Err(Error::defect(format!(
                "{rows} samples, a map of {} numbers for {:?}",
                shown.map.len(),
                self.shape
            )));
        }
        Ok(Tensor::from_slice(shown.map, (rows, c, h, w), self.llava.device())?)
    }

    fn leaves(&self, projections: &Params, tracked: bool) -> Result<Leaves> {
        let device: &Device = self.llava.device();
        let mut vars = Vec::new();
        let mut take = |name: &str| -> Result<Tensor> {
            let entry = self.layout.get(name).ok_or_else(|| Error::defect(format!("projections: no {name}")))?;
            let tensor = Tensor::from_slice(&projections.data()[entry.range()], entry.shape.as_slice(), device)?;
            if !tracked {
                return Ok(tensor);
            }
            let var = Var::from_tensor(&tensor)?;
            let leaf = var.as_tensor().clone();
            vars.push(var);
            Ok(leaf)
        };
        let mut layer = |name: &str| -> Result<Linear> {
            let weight = take(&format!("{name}.weight"))?;
            let bias = format!("{name}.bias");
            let bias = if self.layout.get(&bias).is_some() { Some(take(&bias)?) } else { None };
            Ok(Linear::new(weight, bias))
        };
        // In the layout's order.
        let student = match self.kind {
            StudentProjection::Linear => vec![layer("student")?],
            StudentProjection::Mlp => vec![layer("student.0")?, layer("student.2")?],
        };
        let tower = match self.layout.get("projector.linear_1.weight") {
            Some(_) => Some([layer("projector.linear_1")?, layer("projector.linear_2")?]),
            None => None,
        };
        Ok(Leaves { student, tower, vars })
    }

    fn forward(&self, shown: &Shown, map: &Tensor, leaves: &Leaves) -> Result<Tensor> {
        let images = self.images(shown, map, leaves)?;
        self.llava.answer_loss(shown.samples, &images.to_dtype(self.llava.dtype())?)
    }

    /// What the language model sees: `(rows, places, hidden)`, f32.
    fn images(&self, shown: &Shown, map: &Tensor, leaves: &Leaves) -> Result<Tensor> {
        let [c, h, w] = self.shape;
        let rows = map.dim(0)?;
        let grid = self.resample.forward(&map.reshape((rows, c, h * w))?)?.transpose(1, 2)?.contiguous()?;
        let mut student = grid;
        for (i, layer) in leaves.student.iter().enumerate() {
            student = layer.forward(&if i > 0 { Activation::Gelu.forward(&student)? } else { student })?;
        }
        let student = (student * shown.a)?;
        if shown.a == 1.0 {
            return Ok(student);
        }
        let tower = shown.tower.ok_or_else(|| Error::defect("a < 1 needs the tower's features"))?;
        let seen = match &leaves.tower {
            Some([first, second]) => {
                let inner = first.forward(&tower.to_dtype(DType::F32)?)?;
                second.forward(&self.llava.config().activation.forward(&inner)?)?
            }
            None => self.llava.projector().forward(&tower.to_dtype(self.llava.dtype())?)?.to_dtype(DType::F32)?,
        };
        (student + (seen * (1.0 - shown.a))?).at(|| "student's and tower's features")
    }
}

/// The matrix `(places, h · w)` that resamples a map to `grid` × `grid` places, row by row; with `class` a first place
/// gets the mean.
fn resampling((h, w): (usize, usize), grid: usize, class: bool) -> Vec<f32> {
    let (down, across) = (axis(h, grid), axis(w, grid));
    let mut matrix = if class { vec![1.0 / (h * w) as f32; h * w] } else { Vec::new() };
    for row in &down {
        for column in &across {
            matrix.extend(row.iter().flat_map(|y| column.iter().map(move |x| (y * x) as f32)));
        }
    }
    matrix
}

/// Weights `(to, from)` of bilinear resampling along one axis; the triangle widens with the scale where the map shrinks.
fn axis(from: usize, to: usize) -> Vec<Vec<f64>> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    (0..to)
        .map(|i| {
            let centre = scale * (i as f64 + 0.5);
            let weight = |j: usize| (1.0 - ((j as f64 + 0.5 - centre) / reach).abs()).max(0.0);
            let weights: Vec<f64> = (0..from).map(weight).collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|w| w / total).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Context;
    use crate::nn::optim::{AdamwConfig, Optimiser, OptimiserConfig};
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    /// `tests/golden/llm-pretrain/make.py`.
    fn tensors(file: &str) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(folder("llm-pretrain").join(file), &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn numbers(t: &Tensor) -> Vec<usize> {
        t.to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap().into_iter().map(|n| n as usize).collect()
    }

    fn apart(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// The tiny LLaVA, what PyTorch computed, the two samples, the tower's features of its two pictures.
    struct Golden {
        llava: Llava,
        want: HashMap<String, Tensor>,
        samples: Vec<Sample>,
        tower: Tensor,
    }

    fn golden() -> Golden {
        let llava = Llava::open(&folder("llava/default"), &Context::cpu(1)).unwrap();
        let want = tensors("expected.safetensors");
        let ids = want["ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let (from, lengths) = (numbers(&want["from"]), numbers(&want["lengths"]));
        let samples = (0..2).map(|i| Sample { ids: ids[i][..lengths[i]].to_vec(), from: from[i] }).collect();
        let seen = candle_core::safetensors::load(folder("llava/default/expected.safetensors"), &Device::Cpu).unwrap();
        let tower = llava.tower_features(&seen["pixels"]).unwrap();
        Golden { llava, want, samples, tower }
    }

    impl Golden {
        fn objective(&self, train_tower: bool) -> (CaptionLoss<'_>, Params) {
            let objective = CaptionLoss::new(&self.llava, [5, 3, 4], StudentProjection::Linear, train_tower).unwrap();
            let mut params = objective.init(Key::from_seed(1)).unwrap();
            for name in ["student.weight", "student.bias"] {
                let range = objective.layout().get(name).unwrap().range();
                params.data_mut()[range].copy_from_slice(&flat(&self.want[name]));
            }
            (objective, params)
        }
    }

    #[test]
    fn an_annotation_is_cut_into_the_references_tokens() {
        let g = golden();
        let question = "What is shown in this image?";
        assert_eq!(g.llava.sample(question, "A red star stands on a table.").unwrap(), g.samples[0]);
        assert_eq!(g.llava.sample(question, " Two boxes. ").unwrap(), g.samples[1]);
    }

    #[test]
    fn resampling_is_that_of_pytorch() {
        let want = tensors("resample.safetensors");
        let x = want["x"].reshape((2, 35)).unwrap();
        for (name, h, w) in [("3x3", 3, 3), ("8x9", 8, 9), ("5x10", 5, 10)] {
            let (down, across) = (axis(5, h), axis(7, w));
            let matrix: Vec<f32> = down
                .iter()
                .flat_map(|r| {
                    across.iter().flat_map(move |c| r.iter().flat_map(move |y| c.iter().map(move |x| (y * x) as f32)))
                })
                .collect();
            let matrix = Tensor::from_vec(matrix, (h * w, 35), &Device::Cpu).unwrap();
            let got = x.matmul(&matrix.t().unwrap()).unwrap();
            assert!(apart(&flat(&got), &flat(&want[name])) <= 1e-6, "{name}");
        }
        let square: Vec<f32> = axis(7, 7).concat().iter().map(|v| *v as f32).collect();
        assert!((0..49).all(|i| square[i] == if i % 8 == 0 { 1.0 } else { 0.0 }));
    }

    #[test]
    fn loss_and_all_gradients_are_those_of_pytorch() {
        let g = golden();
        let (objective, params) = g.objective(true);
        let (map, samples): (_, Vec<&Sample>) = (flat(&g.want["f"]), g.samples.iter().collect());
        for a in [0.0, 0.3, 1.0] {
            let shown = Shown { samples: &samples, map: &map, tower: Some(&g.tower), a };
            let want = flat(&g.want[&format!("loss.{a:?}")])[0];
            assert!((objective.loss(shown, &params).unwrap() as f32 - want).abs() <= 1e-4, "a = {a}");
        }
        let got = objective
            .gradients(Shown { samples: &samples, map: &map, tower: Some(&g.tower), a: 0.3 }, &params)
            .unwrap();
        let close = |name: &str, got: &[f32]| {
            let want = flat(&g.want[&format!("grad.{name}")]);
            let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(largest > 0.0 && apart(got, &want) <= 1e-4 * largest, "{name}: {}", apart(got, &want) / largest);
        };
        close("f", &got.map);
        for entry in objective.layout().entries() {
            close(&entry.name, &got.projections[entry.range()]);
        }
        assert_eq!(objective.layout().entries().len(), 6);
    }

    #[test]
    fn at_0_the_loss_is_llavas_own_and_the_student_gets_no_gradient() {
        let g = golden();
        let (objective, params) = g.objective(false);
        let seen = candle_core::safetensors::load(folder("llava/default/expected.safetensors"), &Device::Cpu).unwrap();
        let full = seen["full_ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap().remove(0);
        let labels = seen["labels"].flatten_all().unwrap().to_vec1::<i64>().unwrap();
        let sample = Sample { ids: full, from: labels.iter().position(|l| *l >= 0).unwrap() };
        let map = vec![0.7; 60];
        for (i, own) in seen["loss"].to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let tower = g.tower.narrow(0, i, 1).unwrap();
            let shown = Shown { samples: &[&sample], map: &map, tower: Some(&tower), a: 0.0 };
            let got = objective.gradients(shown, &params).unwrap();
            assert!((got.loss as f32 - own).abs() <= 1e-4, "{} and {own}", got.loss);
            assert!(got.map.iter().all(|g| *g == 0.0));
        }
    }

    #[test]
    fn at_1_the_towers_features_change_nothing_and_need_not_be_there() {
        let g = golden();
        for train_tower in [false, true] {
            let (objective, params) = g.objective(train_tower);
            let (map, samples): (_, Vec<&Sample>) = (flat(&g.want["f"]), g.samples.iter().collect());
            let swapped =
                Tensor::cat(&[g.tower.narrow(0, 1, 1).unwrap(), g.tower.narrow(0, 0, 1).unwrap()], 0).unwrap();
            let run =
                |tower| objective.gradients(Shown { samples: &samples, map: &map, tower, a: 1.0 }, &params).unwrap();
            assert_eq!(run(Some(&g.tower)), run(Some(&swapped)));
            assert_eq!(run(Some(&g.tower)), run(None));
            let (objective, params) = g.objective(false);
            let at =
                |tower| objective.loss(Shown { samples: &samples, map: &map, tower: Some(tower), a: 0.9 }, &params);
            assert_ne!(at(&g.tower).unwrap(), at(&swapped).unwrap());
        }
    }

    #[test]
    fn a_trained_student_prefers_its_own_image_to_anothers() {
        let g = golden();
        let objective = CaptionLoss::new(&g.llava, [5, 3, 4], StudentProjection::Mlp, false).unwrap();
        let mut params = objective.init(Key::from_seed(1)).unwrap();
        let config = OptimiserConfig::Adamw(AdamwConfig { lr: 0.02, ..AdamwConfig::default() });
        let mut optimiser = Optimiser::new(&config, objective.layout());
        let (map, samples): (_, Vec<&Sample>) = (flat(&g.want["f"]), g.samples.iter().collect());
        let swapped = [&map[60..], &map[..60]].concat();
        let shown = |map| Shown { samples: &samples, map, tower: None, a: 1.0 };
        let before = objective.loss(shown(&map), &params).unwrap();
        for _ in 0..60 {
            let got = objective.gradients(shown(&map), &params).unwrap();
            optimiser.step(params.data_mut(), &got.projections, 1.0);
        }
        let own = objective.loss(shown(&map), &params).unwrap();
        let others = objective.loss(shown(&swapped), &params).unwrap();
        assert!(own < before - 0.5 && others > own + 0.1, "before {before}, own {own}, another's {others}");
    }
}
