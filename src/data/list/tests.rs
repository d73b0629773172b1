use std::collections::BTreeMap;

use super::super::decode::tests::png;
use super::*;
use crate::exec::Context;

/// Writes files below a folder.
fn lay(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (path, bytes) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A picture that says which it is.
fn picture(v: u8) -> Vec<u8> {
    png(6, 4, move |_, _| [v; 3])
}

/// Lists in ImageNet-LT's layout: three classes, `test` out of the folder `val`.
const TRAIN: &str = "train/n00000001/n00000001_1.JPEG 0\ntrain/n00000001/n00000001_2.JPEG 0\n\
    train/n00000002/n00000002_7.JPEG 1\ntrain/n00000003/n00000003_5.JPEG 2\n";
const VAL: &str = "train/n00000001/n00000001_3.JPEG 0\ntrain/n00000002/n00000002_8.JPEG 1\n";
const TEST: &str = "val/n00000002/ILSVRC2012_val_00000004.JPEG 1\nval/n00000001/ILSVRC2012_val_00000001.JPEG 0\n";
const NAMES: &str = "n00000001 tench\nn00000002 great white shark\nn00000003 hen\n";

/// Every picture of the lists with its place in ImageNet's own layout.
const PLACES: [(&str, u8); 8] = [
    ("train/n00000001/n00000001_1.JPEG", 11),
    ("train/n00000001/n00000001_2.JPEG", 12),
    ("train/n00000001/n00000001_3.JPEG", 13),
    ("train/n00000002/n00000002_7.JPEG", 27),
    ("train/n00000002/n00000002_8.JPEG", 28),
    ("train/n00000003/n00000003_5.JPEG", 35),
    ("val/n00000001/ILSVRC2012_val_00000001.JPEG", 101),
    ("val/n00000002/ILSVRC2012_val_00000004.JPEG", 104),
];

/// A folder with the lists, and their config.
fn lists() -> (tempfile::TempDir, ListConfig) {
    let dir = tempfile::tempdir().unwrap();
    let text = |t: &str| t.as_bytes().to_vec();
    lay(
        dir.path(),
        &[
            ("l/train.txt", text(TRAIN)),
            ("l/val.txt", text(VAL)),
            ("l/test.txt", text(TEST)),
            ("l/names.txt", text(NAMES)),
        ],
    );
    let at = |name: &str| dir.path().join("l").join(name).display().to_string();
    let config = ListConfig {
        path: dir.path().join("images").display().to_string(),
        train: at("train.txt"),
        val: at("val.txt"),
        test: at("test.txt"),
        names: at("names.txt"),
        ..ListConfig::default()
    };
    (dir, config)
}

fn read(config: &ListConfig) -> Result<Benchmark> {
    load(config, None, &Context::cpu(2))
}

/// What each picture of a set says, and its label.
fn said(set: &Dataset) -> Vec<(u8, u32)> {
    (0..set.len()).map(|i| (set.images.square(i).unwrap().as_raw()[0], set.labels[i])).collect()
}

/// Whether a benchmark has every picture of the lists where it belongs.
fn whole(read: &Benchmark) {
    assert_eq!(said(&read.train), [(11, 0), (12, 0), (27, 1), (35, 2)]);
    assert_eq!(said(read.val.as_ref().unwrap()), [(13, 0), (28, 1)]);
    assert_eq!(said(&read.test), [(104, 1), (101, 0)]);
    assert_eq!(read.train.classes, ["tench", "great white shark", "hen"]);
    for census in read.sources.iter().chain([&read.train.census, &read.test.census]) {
        assert_eq!(census.lost(), 0, "{}", census.line());
    }
}

#[test]
fn images_are_found_as_files_of_the_lists_layout_and_of_others() {
    let as_listed: fn(&str) -> String = str::to_string;
    let layouts: [fn(&str) -> String; 5] = [
        as_listed,
        |p| format!("ILSVRC/Data/CLS-LOC/{p}"),
        // The validation images without class folders, as they are published; other endings; no folders at all.
        |p| if p.starts_with("val") { format!("val/{}", p.rsplit('/').next().unwrap()) } else { p.into() },
        |p| p.replace(".JPEG", ".png"),
        |p| p.rsplit('/').next().unwrap().into(),
    ];
    for layout in layouts {
        let (_dir, config) = lists();
        let files: Vec<(String, Vec<u8>)> = PLACES.iter().map(|(p, v)| (layout(p), picture(*v))).collect();
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(p, b)| (p.as_str(), b.clone())).collect();
        lay(Path::new(&config.path), &files);
        lay(
            Path::new(&config.path),
            &[("extra/other.jpg", picture(1)), ("LICENSE", b"x".to_vec()), (".hidden", picture(1))],
        );
        let read = read(&config).unwrap();
        whole(&read);
        let seen = &read.sources[0];
        let passed = |why| seen.passed(why);
        assert_eq!((seen.read, passed(Why::Unlisted), passed(Why::Other), passed(Why::Hidden)), (8, 1, 1, 1));
    }
}

#[test]
fn images_are_found_in_shards_of_classes_and_of_webdataset() {
    let tar = |root: &Path, name: &str, members: &[(String, u8)]| {
        std::fs::create_dir_all(root).unwrap();
        let mut tar = tar::Builder::new(std::fs::File::create(root.join(name)).unwrap());
        for (path, v) in members {
            let bytes = picture(*v);
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, path, bytes.as_slice()).unwrap();
        }
        tar.finish().unwrap();
    };
    // A tar of each class, as ImageNet's training set unpacks, and the validation images in one.
    let (_dir, config) = lists();
    let mut classes: BTreeMap<String, Vec<(String, u8)>> = BTreeMap::new();
    for (path, v) in PLACES {
        let parts: Vec<&str> = path.split('/').collect();
        let tar = if parts[0] == "val" { "ILSVRC2012_img_val.tar".into() } else { format!("train/{}.tar", parts[1]) };
        classes.entry(tar).or_default().push((parts[2].into(), v));
    }
    for (name, members) in &classes {
        let path = Path::new(&config.path).join(name);
        tar(path.parent().unwrap(), &path.file_name().unwrap().to_string_lossy(), members);
    }
    whole(&read(&config).unwrap());
    // WebDataset's: keys are file names in another ending, samples in any order.
    let (_dir, config) = lists();
    let named = |(p, v): &(&str, u8)| (p.rsplit('/').next().unwrap().replace(".JPEG", ".jpg"), *v);
    let members: Vec<(String, u8)> = PLACES.iter().rev().map(named).collect();
    tar(Path::new(&config.path), "00000.tar", &members[..3]);
    tar(Path::new(&config.path), "00001.tar", &members[3..]);
    whole(&read(&config).unwrap());
    lay(Path::new(&config.path), &[("x/n00000001_1.JPEG", picture(0))]);
    let e = read(&config).unwrap_err().to_string();
    assert!(e.contains("side by side: 1, 2 and 0") && e.contains("data.images"), "{e}");
    whole(&read(&ListConfig { images: Form::Shards, ..config }).unwrap());
}

#[test]
fn images_are_found_in_the_rows_of_parquet_files() {
    let (_dir, config) = lists();
    let hub = |p: &str| {
        let (parts, stem) = (p.split('/').collect::<Vec<_>>(), stem(p));
        format!("{stem}_{}.JPEG", parts[1])
    };
    std::fs::create_dir_all(&config.path).unwrap();
    for (n, rows) in PLACES.chunks(5).enumerate() {
        let rows: Vec<(String, Vec<u8>)> = rows.iter().map(|(p, v)| (hub(p), picture(*v))).collect();
        parquet_file(&Path::new(&config.path).join(format!("train-{n:05}-of-00002.parquet")), &rows, true);
    }
    whole(&read(&config).unwrap());
    let nameless = Path::new(&config.path).join("z.parquet");
    parquet_file(&nameless, &[(String::new(), picture(0))], false);
    let e = read(&config).unwrap_err().to_string();
    assert!(
        e.contains("z.parquet: row group 0: 0 values in 1 rows") && e.contains("`image.path` must be there"),
        "{e}"
    );
}

/// A Parquet file with a struct column `image`, two rows a group and one a page.
fn parquet_file(path: &Path, rows: &[(String, Vec<u8>)], named: bool) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = "message m { optional group image { optional binary bytes; optional binary path (UTF8); } }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_data_page_row_count_limit(1).set_write_batch_size(1).build();
    let mut file =
        SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for two in rows.chunks(2) {
        let mut group = file.next_row_group().unwrap();
        let columns: [Vec<ByteArray>; 2] = [
            two.iter().map(|(_, bytes)| bytes.clone().into()).collect(),
            two.iter().map(|(path, _)| path.as_str().into()).collect(),
        ];
        for (c, values) in columns.iter().enumerate() {
            let mut column = group.next_column().unwrap().unwrap();
            let (values, level) = if c == 1 && !named { (&[][..], 1) } else { (values.as_slice(), 2) };
            column.typed::<ByteArrayType>().write_batch(values, Some(&vec![level; two.len()]), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    file.close().unwrap();
}

#[test]
fn what_is_missing_double_of_two_lists_or_of_no_class_is_counted_by_name() {
    let (_dir, mut config) = lists();
    let files: Vec<(&str, Vec<u8>)> = PLACES.iter().map(|(p, v)| (*p, picture(*v))).collect();
    lay(Path::new(&config.path), &files);
    let more = "train/n00000001/gone.JPEG 0\ntrain/n00000001/n00000001_1.JPEG 0\ntrain/n00000002/n00000002_9.JPEG 3\n\
        val/n00000002/ILSVRC2012_val_00000004.JPEG 1\n";
    std::fs::write(&config.train, format!("{TRAIN}{more}")).unwrap();
    std::fs::write(&config.val, format!("{VAL}train/n00000003/n00000003_5.JPEG 2\n")).unwrap();
    let read = read(&config).unwrap();
    let train = &read.train.census;
    let passed = [Why::NoImage, Why::Double, Why::Label, Why::Test].map(|why| train.passed(why));
    assert_eq!((train.read, passed), (4, [1; 4]), "{}", train.line());
    let line = train.line();
    for name in ["train/n00000001/gone.JPEG", "line 6: train/n00000001", "line 7: label 3 of 3", "val_00000004"] {
        assert!(line.contains(name), "{name}: {line}");
    }
    assert_eq!(read.val.unwrap().census.passed(Why::Shared), 1);
    assert!(train.check(0.01).unwrap_err().to_string().contains("4 of 8 lines cannot be used"));
    let unnamed = ListConfig { path: "/nowhere".into(), ..ListConfig::default() };
    assert!(
        super::load(&unnamed, None, &Context::cpu(1)).unwrap_err().to_string().contains("data.train names no list")
    );
    config.test = "nowhere.txt".into();
    let e = super::load(&config, None, &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.starts_with("data.test: no file nowhere.txt"), "{e}");
}

#[test]
fn images_are_read_when_they_are_needed_and_labels_alone_make_a_split() {
    use super::super::*;
    let (_dir, config) = lists();
    let files: Vec<(&str, Vec<u8>)> = PLACES.iter().map(|(p, _)| (*p, b"no picture at all".to_vec())).collect();
    lay(Path::new(&config.path), &files);
    let read = read(&config).unwrap();
    let tail = LongTailConfig { kind: LongTailKind::None, ..Default::default() };
    let cut = PartitionConfig::Dirichlet(partition::DirichletConfig { clients: 2, min_size: 1, ..Default::default() });
    let server = ServerSetConfig { origin: Origin::Val, per_class: Some(1), ..Default::default() };
    let key = Key::from_seed(1);
    let split = Split::draw(&read.train.labels, 3, &tail, &cut, &server, &ValidationConfig::default(), key).unwrap();
    assert_eq!((split.global_counts(), split.server.len()), (vec![2, 1, 1], 0));
    let e = read.train.images.square(2).unwrap_err().to_string();
    assert!(e.contains("train/n00000002/n00000002_7.JPEG: not a readable image"), "{e}");
    let none = ValidationConfig::default();
    let e = reserve::from_val(&server, &none, read.val.as_ref(), key).unwrap_err().to_string();
    assert!(e.contains("class 2 has 0 unused images") && e.contains("list val has too few images"), "{e}");
    assert!(
        reserve::from_val(&server, &none, None, key).unwrap_err().to_string().contains("no validation set of its own")
    );
}

#[test]
fn the_servers_and_the_validation_set_come_from_val_by_key_and_apart() {
    use super::super::*;
    let (dir, config) = lists();
    let files: Vec<(String, Vec<u8>)> = (0..30u8).map(|i| (format!("v/{}/{i}.png", i % 3), picture(i))).collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(p, b)| (p.as_str(), b.clone())).collect();
    lay(Path::new(&config.path), &files);
    let text: String = files.iter().enumerate().map(|(i, (p, _))| format!("{p} {}\n", i % 3)).collect();
    std::fs::write(dir.path().join("l/val.txt"), text).unwrap();
    let read = read(&config).unwrap();
    let server = ServerSetConfig { origin: Origin::Val, per_class: Some(4), ..Default::default() };
    let draw = |seed| {
        let both =
            reserve::from_val(&server, &ValidationConfig { per_class: 3 }, read.val.as_ref(), Key::from_seed(seed));
        both.unwrap().unwrap().map(|set| said(&set.unwrap()))
    };
    let [mine, kept] = draw(1);
    assert_eq!((mine.len(), kept.len()), (12, 9));
    assert!(mine.iter().all(|(v, y)| u32::from(v % 3) == *y && !kept.contains(&(*v, *y))));
    assert_ne!(draw(2)[0], mine);
    assert_eq!(draw(1), [mine, kept]);
}

#[test]
fn an_official_benchmark_is_known_by_its_counts() {
    let (_dir, config) = lists();
    lay(Path::new(&config.path), &[("train/n00000001/n00000001_1.JPEG", picture(1))]);
    let e = load(&config, Some(&PLACES_LT), &Context::cpu(1)).unwrap_err().to_string();
    assert!(e.contains("train.txt: 4 images; Places-LT has 62500") && e.contains("data.kind = \"list\""), "{e}");
}

/// The published lists, with the published counts in place of ImageNet-LT's training list, which nobody may pass on.
#[test]
fn the_published_lists_have_their_counts_names_and_groups() {
    let Some(data) = super::super::real_data() else { return };
    let images = tempfile::tempdir().unwrap();
    lay(images.path(), &[("val/airfield/Places365_val_00003597.jpg", picture(1))]);
    let config = ListConfig { path: images.path().display().to_string(), ..ListConfig::default() };
    let own = |config: &ListConfig, folder: &str, files: [&str; 4]| {
        let at = |name: &str| {
            if name.is_empty() { String::new() } else { data.join(folder).join(name).display().to_string() }
        };
        let [train, val, test, names] = files.map(at);
        ListConfig { train, val, test, names, ..config.clone() }
    };
    let places = ["Places_LT_train.txt.gz", "Places_LT_val.txt.gz", "Places_LT_test.txt.gz", "classnames.txt"];
    let read = load(&own(&config, "places-lt", places), Some(&PLACES_LT), &Context::cpu(1)).unwrap();
    let passed =
        [&read.train, read.val.as_ref().unwrap(), &read.test].map(|s| (s.len(), s.census.passed(Why::NoImage)));
    assert_eq!(passed, [(0, 62_500), (0, 7_300), (1, 36_499)]);
    assert_eq!(read.train.classes[..2], ["airfield", "airplane_cabin"]);
    // The published file of names is in another order than the labels here.
    assert!(read.train.classes.iter().any(|c| c == "desert_road"));

    let counts: Vec<u32> = fsx::read_json(&data.join("imagenet-lt/ImageNet_LT_train_class_counts.json")).unwrap();
    let names = std::fs::read_to_string(data.join("imagenet-lt/classnames.txt")).unwrap();
    let mut text = String::new();
    for ((line, n), y) in names.lines().zip(&counts).zip(0..) {
        let wnid = line.split(' ').next().unwrap();
        (0..*n).for_each(|k| text += &format!("train/{wnid}/{wnid}_{k}.JPEG {y}\n"));
    }
    let train = images.path().join("train.txt");
    std::fs::write(&train, &text).unwrap();
    let imagenet = ["", "ImageNet_LT_val.txt.gz", "ImageNet_LT_test.txt.gz", "classnames.txt"];
    let config = ListConfig { train: train.display().to_string(), ..own(&config, "imagenet-lt", imagenet) };
    let read = load(&config, Some(&IMAGENET_LT), &Context::cpu(1)).unwrap();
    assert_eq!(
        (read.train.census.passed(Why::NoImage), read.train.classes[2].as_str()),
        (115_846, "great white shark")
    );
    let rarest = counts.iter().position(|n| *n == 5).unwrap();
    std::fs::write(&train, text.replacen(&format!(" {rarest}\n"), " 0\n", 1)).unwrap();
    let e = load(&config, Some(&IMAGENET_LT), &Context::cpu(1)).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("classes of 4 to 1280 images, 385 many"), "{e}");
    assert!(e.contains("has classes of 5 to 1280 images, 385 many, 479 medium and 136 few"), "{e}");
}
