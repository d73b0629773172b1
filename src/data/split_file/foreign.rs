//! Partitions as other tools write them: a list of lists, an object or a pickle of one list or array a client
//! (`{"0": […], "1": […]}`), and FL-bench's `partition.pkl`, whose training clients and their `train` images are taken.
//! Indices beyond the training set mean the test set there (FL-bench puts the two together): they are left out.

use serde_json::Value;

use super::File;
use crate::data::census::{Census, Why};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::pickle::{Item, Pickle};

pub(super) const FORMS: &str = "expected {\"clients\": [[17, 4, …], …]}, a list of lists, {\"0\": [17, 4, …], …}, or FL-bench's partition.pkl; \
    `fedllava split export` writes one";

/// A split of so many training images from a file's bytes, whoever wrote them.
pub(super) fn file(bytes: Vec<u8>, images: usize, census: &mut Census) -> Result<File> {
    // Pickles of protocols 0 and 1 have no mark; they are lists or dictionaries, and end with a stop.
    let old = matches!(bytes.first(), Some(b'(' | b']' | b'}' | b'c')) && bytes.ends_with(b".");
    match bytes.first() {
        Some(0x80) => pickled(&bytes, images, census),
        _ if old => pickled(&bytes, images, census),
        _ => written(&fsx::text(bytes).map_err(|e| e.hint(FORMS))?),
    }
}

/// A split from JSON: this project's form, a list of lists, or an object of one list a client.
fn written(text: &str) -> Result<File> {
    let of = |clients: Value| -> Result<File> { Ok(File { clients: whole(clients)?, ..File::default() }) };
    match fsx::json(text).map_err(|e| e.hint(FORMS))? {
        Value::Object(map) if map.contains_key("clients") => fsx::json(text),
        Value::Object(map) if !map.is_empty() && map.keys().all(|k| k.parse::<u32>().is_ok()) => {
            of(Value::Array(by_number(map.into_iter().map(|(k, v)| (k.parse().unwrap_or(0), v)).collect())?))
        }
        list @ Value::Array(_) => of(list),
        _ => Err(Error::data("no `clients` in it").hint(FORMS)),
    }
}

/// Clients in the order of their numbers, which are without gaps; from 0 or from wherever.
fn by_number<T>(mut clients: Vec<(i64, T)>) -> Result<Vec<T>> {
    clients.sort_by_key(|(k, _)| *k);
    match clients.windows(2).find(|pair| pair[1].0 != pair[0].0 + 1) {
        Some(gap) => Err(Error::data(format!("no client {} between {} and {}", gap[0].0 + 1, gap[0].0, gap[1].0))),
        None => Ok(clients.into_iter().map(|(_, v)| v).collect()),
    }
}

fn whole(clients: Value) -> Result<Vec<Vec<u32>>> {
    let text = clients.to_string();
    fsx::json(&text).map_err(|e| {
        let said = e.message().split_once(": ").map_or(e.message(), |(_, m)| m).to_string();
        Error::data(format!("the clients' lists: {said}")).hint(FORMS)
    })
}

/// A split from a pickle: a list or a dictionary of lists or arrays, an array of rows, or FL-bench's.
fn pickled(bytes: &[u8], images: usize, census: &mut Census) -> Result<File> {
    let (pickle, _) = Pickle::read(bytes)?;
    let root = pickle.root();
    let clients = match (root.get("data_indices"), rows(root), root.list(), root.pairs()) {
        (Some(clients), ..) => fl_bench(root, clients, census)?,
        (_, Some(rows), ..) => rows?,
        (.., Some(list), _) => list.into_iter().map(Item::integers).collect::<Result<_>>()?,
        (.., Some(pairs)) => numbered(pairs)?.into_iter().map(Item::integers).collect::<Result<_>>()?,
        _ => return Err(Error::data(format!("holds {}", root.what())).hint(FORMS)),
    };
    let mut file = File::default();
    for list in clients {
        let mut own = Vec::new();
        for i in list {
            match u32::try_from(i) {
                Ok(i) if (i as usize) < images => own.push(i),
                Ok(i) => census.pass(Why::Test, i.to_string()),
                Err(_) => return Err(Error::data(format!("{i} is no image's index"))),
            }
        }
        file.clients.push(own);
    }
    if census.passed(Why::Test) > 0 {
        census.advice = format!("indices from {images} mean test images there, and none of those may train");
    }
    Ok(file)
}

/// A dictionary's values by the numbers that its keys are.
fn numbered<'p>(pairs: Vec<(Item<'p>, Item<'p>)>) -> Result<Vec<Item<'p>>> {
    let number = |k: Item| k.int().or_else(|| k.text()?.parse().ok());
    let lists = pairs.into_iter().map(|(k, v)| Some((number(k)?, v))).collect::<Option<Vec<_>>>();
    by_number(lists.ok_or_else(|| Error::data("its keys are not clients' numbers").hint(FORMS))?)
}

/// The clients of a numpy array: its rows, or the lists and arrays that it holds.
fn rows(root: Item) -> Option<Result<Vec<Vec<i64>>>> {
    if let Some(objects) = root.state().and_then(|s| s.list()?.last()?.list()).filter(|o| !o.is_empty()) {
        return Some(objects.into_iter().map(Item::integers).collect());
    }
    let array = match root.array()? {
        Ok(array) => array,
        Err(e) => return Some(Err(e)),
    };
    let &[_, width] = array.shape.as_slice() else {
        return Some(Err(Error::data(format!("an array of shape {:?}", array.shape)).hint(FORMS)));
    };
    Some(array.integers().map(|all| all.chunks_exact(width.max(1)).map(<[i64]>::to_vec).collect()))
}

/// The training images of FL-bench's training clients.
fn fl_bench(root: Item, clients: Item, census: &mut Census) -> Result<Vec<Vec<i64>>> {
    let listed = clients.list().map(Ok).or_else(|| clients.pairs().map(numbered));
    let clients = listed.ok_or_else(|| Error::data("data_indices is no list"))??;
    let train = root.get("separation").and_then(|s| s.get("train")).map(Item::integers).transpose()?;
    let mut lists = Vec::new();
    for (k, client) in clients.into_iter().enumerate() {
        let part =
            |name: &str| client.get(name).map_or(Ok(Vec::new()), Item::integers).at(|| format!("client {k}, {name}"));
        let own = part("train")?;
        let trains = train.as_ref().is_none_or(|t| t.contains(&(k as i64)));
        let rest = if trains { Vec::new() } else { own.clone() };
        for i in [part("val")?, part("test")?, rest].concat() {
            census.pass(Why::OwnTest, i.to_string());
        }
        if trains {
            lists.push(own);
        }
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LABELS, import};
    use super::*;
    use crate::data::split::Split;

    fn import_bytes(bytes: &[u8]) -> Result<(Split, Census)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("partition.pkl");
        std::fs::write(&path, bytes).unwrap();
        Split::import(&path, &LABELS, 3)
    }

    #[test]
    fn other_tools_lists_are_imported() {
        let want = import(r#"{"clients": [[0, 1], [4]]}"#).unwrap();
        for text in ["[[0, 1], [4]]", "\u{feff}{\"1\": [4], \"0\": [0, 1]}"] {
            assert_eq!(import(text).unwrap(), want);
        }
        let e = import(r#"[[0.5], [1]]"#).unwrap_err().to_string();
        assert!(e.contains("the number 0.5, expected a whole number") && !e.contains("u32"), "{e}");
    }

    #[test]
    fn fl_benchs_pickle_gives_its_training_clients_their_training_images() {
        // {"separation": {"train": [0, 1]}, "data_indices": [{"train": [0, 1], "test": [2]}, {"train": [4, 7]}, {"train": [5]}]}
        let pickle = b"\x80\x04}(\x8c\x0aseparation}\x8c\x05train](K\x00K\x01es\x8c\x0cdata_indices](}(\x8c\x05train](K\x00K\x01e\x8c\x04test]K\x02au}\x8c\x05train](K\x04K\x07es}\x8c\x05train]K\x05aseu.";
        let (split, census) = import_bytes(pickle).unwrap();
        assert_eq!(split.clients, [vec![0, 1], vec![4]]);
        assert_eq!((census.read, census.passed(Why::Test), census.passed(Why::OwnTest)), (3, 1, 2));
    }

    #[test]
    fn arrays_of_clients_are_rows_and_the_oldest_pickles_are_known_without_a_mark() {
        let want = [vec![0, 1], vec![4, 5]];
        // pickle.dumps(numpy.array([[0, 1], [4, 5]], numpy.uint8))
        let square = b"\x80\x04\x95\x8f\x00\x00\x00\x00\x00\x00\x00\x8c\x16numpy._core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\x87\x94R\x94(K\x01K\x02K\x02\x86\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x02u1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89C\x04\x00\x01\x04\x05\x94t\x94b.";
        assert_eq!(import_bytes(square).unwrap().0.clients, want);
        // numpy.array([[0, 1], [4]], dtype=object), protocol 2
        let ragged = b"\x80\x02cnumpy._core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02c_codecs\nencode\nq\x03X\x01\x00\x00\x00bq\x04X\x06\x00\x00\x00latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01K\x02\x85q\ncnumpy\ndtype\nq\x0bX\x02\x00\x00\x00O8q\x0c\x89\x88\x87q\rRq\x0e(K\x03X\x01\x00\x00\x00|q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tq\x10b\x89]q\x11(]q\x12(K\x00K\x01e]q\x13K\x04aetq\x14b.";
        assert_eq!(import_bytes(ragged).unwrap().0.clients, [vec![0, 1], vec![4]]);
        let plain = b"(lp0\n(lp1\nI0\naI1\naa(lp2\nI4\naI5\naa.";
        assert_eq!(import_bytes(plain).unwrap().0.clients, want);
        let e = import_bytes(b"\x93NUMPY\x01\x00").unwrap_err();
        assert!(
            e.to_string().contains("a numpy array, expected a text") && e.to_string().contains("split export"),
            "{e}"
        );
        let e = import_bytes(b"\x80\x04].").unwrap_err().to_string();
        assert!(e.contains("no client in it"), "{e}");
    }
}
