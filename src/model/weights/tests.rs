//! Published weights in every form that is read.

use super::*;

const CPU: &Device = &Device::Cpu;

fn file(dir: &Path, name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> PathBuf {
    let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.clone(), b).unwrap()));
    let path = dir.join(name);
    fsx::write_atomic(&path, &safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

fn bytes<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

#[test]
fn every_stored_type_is_converted_to_the_one_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let values = [1.5f32, -2.0, 0.25];
    let half: Vec<u16> = values.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
    let brain: Vec<u16> = values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
    let tensors = [
        ("a", Dtype::F32, vec![3], bytes(&values)),
        ("b", Dtype::F16, vec![3], bytes(&half)),
        ("c", Dtype::BF16, vec![3], bytes(&brain)),
        ("d", Dtype::F64, vec![3], bytes(&values.map(f64::from))),
    ];
    let weights = Weights::open(&file(dir.path(), "x.safetensors", &tensors)).unwrap();
    assert_eq!(weights.names(), ["a", "b", "c", "d"]);
    for name in weights.names() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let got = weights.get(name, &[3], dtype, CPU).unwrap();
            assert_eq!(got.dtype(), dtype);
            assert_eq!(got.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), values, "{name}");
        }
    }
}

#[test]
fn errors_name_the_tensor_the_file_and_both_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [
        ("layer.weight", Dtype::F32, vec![2, 2], bytes(&[0f32; 4])),
        ("layer.count", Dtype::I64, vec![1], bytes(&[7i64])),
    ];
    let weights = Weights::open(&file(dir.path(), "x.safetensors", &tensors)).unwrap();
    let error = |name: &str, shape: &[usize]| weights.get(name, shape, DType::F32, CPU).unwrap_err().to_string();
    let shapes = error("layer.weight", &[2, 3]);
    assert!(["x.safetensors", "layer.weight", "[2, 3]", "[2, 2]"].iter().all(|t| shapes.contains(t)), "{shapes}");
    assert!(error("layer.weigth", &[2, 2]).contains("layer.weight"));
    assert!(error("layer.count", &[1]).contains("I64"));
}

#[test]
fn truncated_longer_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "x.safetensors", &[("a", Dtype::F32, vec![8], bytes(&[1f32; 8]))]);
    let whole = fsx::read(&path).unwrap();
    let longer = [&whole[..], &[0]].concat();
    let cut = whole.len() - 1;
    for bad in [&whole[..cut], &whole[..20], &whole[..4], &longer[..], b"not a model at all", &[255; 64]] {
        std::fs::write(&path, bad).unwrap();
        assert!(Weights::open(&path).is_err(), "{} bytes", bad.len());
    }
    std::fs::write(&path, &whole).unwrap();
    assert!(Weights::open(&path).is_ok());
    assert!(Weights::open(dir.path()).err().unwrap().to_string().contains("no weights here"));
}

#[test]
fn shards_are_read_together_and_an_index_cannot_leave_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "m-1.safetensors", &[("a", Dtype::F32, vec![1], bytes(&[1f32]))]);
    file(dir.path(), "m-2.safetensors", &[("b", Dtype::F32, vec![1], bytes(&[2f32]))]);
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.get("b", &[1], DType::F32, CPU).unwrap().to_vec1::<f32>().unwrap(), [2.0]);
    assert_eq!(weights.paths().len(), 2);
    assert!(complete(dir.path()));
    std::fs::write(&index, r#"{"weight_map": {"a": "../m-1.safetensors"}}"#).unwrap();
    assert!(Weights::open(dir.path()).is_err() && !complete(dir.path()));
}

/// Written by `torch.save`: see the golden script of CLIP.
#[test]
fn a_pytorch_pickle_is_read_by_the_same_names() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip/pickle/pytorch_model.bin");
    let weights = Weights::open(path.parent().unwrap()).unwrap();
    assert_eq!(weights.names(), ["a.weight", "b"]);
    let a = weights.get("a.weight", &[2, 3], DType::F32, CPU).unwrap();
    assert_eq!(a.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    assert_eq!(weights.get("b", &[2], DType::F32, CPU).unwrap().to_vec1::<f32>().unwrap(), [0.5, -0.5]);
}

fn pickles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip/pickle")
}

/// `tests/golden/clip/pickle/make.py`.
#[test]
fn every_form_of_torch_save_gives_the_same_tensors() {
    for (file, prefix, b) in
        [("legacy.th", "", [0.5, -0.5]), ("script.pth.tar", "module.", [0.5, -0.5]), ("views.pt", "", [6.0, 7.0])]
    {
        let weights = Weights::open(&pickles().join(file)).unwrap();
        assert_eq!(weights.names(), [format!("{prefix}a.weight"), format!("{prefix}b")], "{file}");
        let a = weights.get(&format!("{prefix}a.weight"), &[2, 3], DType::F32, CPU).unwrap();
        assert_eq!(a.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "{file}");
        let got = weights.get(&format!("{prefix}b"), &[2], DType::F32, CPU).unwrap();
        assert_eq!(got.to_vec1::<f32>().unwrap(), b, "{file}");
    }
    let e = Weights::open(&pickles().join("transposed.pt")).err().unwrap().to_string();
    assert!(e.contains("transposed.pt") && e.contains("stored transposed"), "{e}");
}

#[test]
fn damaged_files_of_torch_are_refused_and_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Key::from_seed(2).rng();
    for file in ["legacy.th", "script.pth.tar", "views.pt"] {
        let (whole, path) = (fsx::read(&pickles().join(file)).unwrap(), dir.path().join(file));
        for round in 0..300 {
            let mut bytes = whole.clone();
            let at = rng.below(bytes.len());
            bytes[at] = rng.u32() as u8;
            if round % 3 == 0 {
                bytes.truncate(rng.below(whole.len()));
            }
            std::fs::write(&path, bytes).unwrap();
            if let Ok(weights) = Weights::open(&path) {
                for name in weights.names() {
                    drop(weights.get(name, &weights.shape(name).unwrap(), DType::F32, CPU));
                }
            }
        }
        for cut in [0, 4, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Weights::open(&path).is_err(), "{file} cut at {cut}");
        }
    }
}

#[test]
fn shards_of_bin_files_are_read_by_their_index() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(pickles().join("legacy.th"), dir.path().join("pytorch_model-00001-of-00001.bin")).unwrap();
    let index =
        r#"{"weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin", "b": "pytorch_model-00001-of-00001.bin"}}"#;
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert!(complete(dir.path()));
    assert_eq!(Weights::open(dir.path()).unwrap().names(), ["a.weight", "b"]);
    std::fs::remove_file(dir.path().join("pytorch_model.bin.index.json")).unwrap();
    let e = Weights::open(dir.path()).err().unwrap().to_string();
    assert!(e.contains("pytorch_model-00001-of-00001.bin is there"), "{e}");
}

#[test]
fn a_fresh_tensor_depends_on_its_name_and_key_alone() {
    let draws = |names: &[&str], seed| {
        let source = Trainable::fresh(Key::from_seed(seed), CPU);
        for name in names {
            Scope::root(&source).pp("x").tensor(name, &[4], Init::Normal(1.0)).unwrap();
        }
        let values = |v: Var| v.to_vec1::<f32>().unwrap();
        source.into_vars().into_iter().map(|(k, v)| (k, values(v))).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(draws(&["a", "b"], 1), draws(&["b", "a"], 1));
    assert_ne!(draws(&["a", "b"], 1), draws(&["a", "b"], 2));
    assert_ne!(draws(&["a", "b"], 1)["x.a"], draws(&["a", "b"], 1)["x.b"]);
}
