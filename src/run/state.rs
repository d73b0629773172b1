//! Named parameter vectors of any layout as one safetensors file, layouts in its metadata.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx;
use crate::nn::{Layout, Params, Role};

/// A layout as JSON: `(name, shape, is a buffer)`.
type Shape = Vec<(String, Vec<usize>, bool)>;

#[derive(Default, Serialize, Deserialize)]
struct Index {
    layouts: Vec<Shape>,
    of: BTreeMap<String, usize>,
}

/// The bytes of a file that holds `named`, one flat tensor each.
pub fn to_bytes(named: &BTreeMap<String, Params>) -> Result<Vec<u8>> {
    let mut index = Index::default();
    let mut known: Vec<Arc<Layout>> = Vec::new();
    let mut views = Vec::new();
    for (name, params) in named {
        let position = known.iter().position(|l| Arc::ptr_eq(l, params.layout()) || l == params.layout());
        let position = position.unwrap_or_else(|| {
            known.push(params.layout().clone());
            index.layouts.push(shape_of(params.layout()));
            known.len() - 1
        });
        index.of.insert(name.clone(), position);
        let bytes = bytemuck::cast_slice(params.data());
        let view = TensorView::new(Dtype::F32, vec![params.data().len()], bytes);
        views.push((name.as_str(), view.map_err(|e| Error::defect(format!("safetensors: {name}: {e}")))?));
    }
    let text = serde_json::to_string(&index).map_err(|e| Error::defect(format!("state index: {e}")))?;
    let metadata = std::collections::HashMap::from([("index".to_string(), text)]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| Error::defect(format!("safetensors: {e}")))
}

/// Reads what [`to_bytes`] made.
pub fn load(path: &Path) -> Result<BTreeMap<String, Params>> {
    let bytes = fsx::read(path)?;
    let broken = |e: String| Error::data(format!("{}: {e}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
    let text = header.metadata().as_ref().and_then(|m| m.get("index"));
    let text = text.ok_or_else(|| broken("no index in its metadata".into()))?;
    let index: Index = serde_json::from_str(text).map_err(|e| broken(e.to_string()))?;
    let layouts: Result<Vec<Arc<Layout>>> = index.layouts.iter().map(layout_of).collect();
    let layouts = layouts.map_err(|e| broken(e.message().into()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
    let mut named = BTreeMap::new();
    for (name, position) in index.of {
        let view = file.tensor(&name).map_err(|e| broken(format!("{name}: {e}")))?;
        let layout = layouts.get(position).ok_or_else(|| broken(format!("{name}: no layout {position}")))?;
        if view.dtype() != Dtype::F32 {
            return Err(broken(format!("{name}: stored as {:?}", view.dtype())));
        }
        let mut data = vec![0.0f32; view.data().len() / 4];
        bytemuck::cast_slice_mut::<f32, u8>(&mut data).copy_from_slice(view.data());
        if data.len() != layout.len() {
            return Err(broken(format!("{name}: {} numbers for a layout of {}", data.len(), layout.len())));
        }
        named.insert(name, Params::new(layout.clone(), data)?);
    }
    Ok(named)
}

fn shape_of(layout: &Layout) -> Shape {
    layout.entries().iter().map(|e| (e.name.clone(), e.shape.clone(), e.role == Role::Buffer)).collect()
}

fn layout_of(shape: &Shape) -> Result<Arc<Layout>> {
    let mut layout = Layout::default();
    for (name, shape, buffer) in shape {
        layout.push(name.as_str(), shape, if *buffer { Role::Buffer } else { Role::Weight })?;
    }
    Ok(Arc::new(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_two_layouts_come_back_with_their_roles() {
        let a = layout_of(&vec![("w".into(), vec![2, 2], false), ("m".into(), vec![2], true)]).unwrap();
        let b = layout_of(&vec![("features".into(), vec![3], false)]).unwrap();
        let named = BTreeMap::from([
            ("control".to_string(), Params::new(a.clone(), (0..6).map(|i| i as f32).collect::<Vec<_>>()).unwrap()),
            ("control2".to_string(), Params::zeros(a)),
            ("synthetic".to_string(), Params::new(b, vec![7.0, 8.0, 9.0]).unwrap()),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.safetensors");
        fsx::write_atomic(&path, &to_bytes(&named).unwrap()).unwrap();
        let back = load(&path).unwrap();
        assert_eq!(back.len(), 3);
        for (name, params) in &named {
            assert_eq!(back[name].data(), params.data());
            assert_eq!(back[name].layout(), params.layout());
        }
    }
}
