//! Published long-tailed lists, and the counts by which they are known.

use super::ListConfig;
use super::lines::{Line, Lines};
use crate::data::dataset::class_counts;
use crate::data::shots::Shots;
use crate::error::{Error, Result};

/// One published set of lists.
pub struct Official {
    /// For people.
    pub name: &'static str,
    /// The folder that is looked in for lists that lie beside nothing else.
    folder: &'static str,
    train: List,
    val: List,
    test: List,
    names: &'static str,
    /// Classes.
    pub classes: usize,
    /// Classes with more than 100, with 20 to 100, and with fewer than 20 training images.
    groups: [usize; 3],
    /// Images of the smallest and of the largest class.
    ends: [u32; 2],
}

/// A list's file, and how many images it names.
struct List {
    file: &'static str,
    images: usize,
}

/// ImageNet-LT (Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019).
pub static IMAGENET_LT: Official = Official {
    name: "ImageNet-LT",
    folder: "imagenet-lt",
    train: List { file: "ImageNet_LT_train.txt", images: 115_846 },
    val: List { file: "ImageNet_LT_val.txt", images: 20_000 },
    test: List { file: "ImageNet_LT_test.txt", images: 50_000 },
    names: "classnames.txt",
    classes: 1000,
    groups: [385, 479, 136],
    ends: [5, 1280],
};

/// Places-LT, of the same paper.
pub static PLACES_LT: Official = Official {
    name: "Places-LT",
    folder: "places-lt",
    train: List { file: "Places_LT_train.txt", images: 62_500 },
    val: List { file: "Places_LT_val.txt", images: 7_300 },
    test: List { file: "Places_LT_test.txt", images: 36_500 },
    names: "classnames.txt",
    classes: 365,
    groups: [131, 163, 71],
    ends: [5, 4980],
};

impl Official {
    /// The config with the published names where it says nothing, and the folder to look in besides.
    pub(super) fn complete(&self, config: &ListConfig) -> ListConfig {
        let or = |own: &String, file: &str| if own.is_empty() { file.to_string() } else { own.clone() };
        ListConfig {
            train: or(&config.train, self.train.file),
            val: or(&config.val, self.val.file),
            test: or(&config.test, self.test.file),
            names: or(&config.names, self.names),
            ..config.clone()
        }
    }

    /// Where a file of the lists may lie below the folder of all data.
    pub(super) fn beside(&self, file: &str) -> String {
        format!("{}/{file}", self.folder)
    }

    /// Training, validation and test images.
    pub fn images(&self) -> [usize; 3] {
        [self.train.images, self.val.images, self.test.images]
    }

    /// Refuses lists that are not the published ones by their counts.
    pub(super) fn check(&self, train: &Lines, val: Option<&Lines>, test: &Lines) -> Result<()> {
        let refuse = |list: &Lines, found: String, expected: String| {
            Err(Error::data(format!("{}: {found}; {} has {expected}", list.census.source, self.name))
                .hint("another or a changed list is read with data.kind = \"list\""))
        };
        let lists = [(&self.train, Some(train)), (&self.val, val), (&self.test, Some(test))];
        let lists = || lists.iter().filter_map(|(of, list)| Some((of.images, (*list)?)));
        if let Some((images, list)) = lists().find(|(images, list)| list.lines.len() != *images) {
            return refuse(list, format!("{} images", list.lines.len()), images.to_string());
        }
        let counts = |lines: &[Line]| class_counts(&lines.iter().map(|l| l.label).collect::<Vec<_>>(), self.classes);
        let tail = counts(&train.lines);
        let ends = [tail.iter().min(), tail.iter().max()].map(|n| n.copied().unwrap_or(0));
        let groups = Shots::Strict.group(&tail)?;
        let groups = [groups.many.len(), groups.medium.len(), groups.few.len()];
        if (ends, groups) != (self.ends, self.groups) {
            let words = |[least, most]: [u32; 2], [many, medium, few]: [usize; 3]| {
                format!("classes of {least} to {most} images, {many} many, {medium} medium and {few} few")
            };
            return refuse(train, words(ends, groups), words(self.ends, self.groups));
        }
        for (images, list) in lists().skip(1) {
            let each = (images / self.classes) as u32;
            if let Some(c) = counts(&list.lines).iter().position(|n| *n != each) {
                let found = counts(&list.lines)[c];
                return refuse(list, format!("{found} images of class {c}"), format!("{each} of every class"));
            }
        }
        Ok(())
    }
}
