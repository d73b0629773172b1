//! What is true of a picture and can be said of it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, closest};
use crate::key::Rng;

/// A closed set of attribute values, each with its word.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order of its index.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The English word.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            /// The value that this word names.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.word() == word)
            }

            /// Uniform over all values.
            pub fn draw(rng: &mut Rng) -> Self {
                Self::ALL[rng.below(Self::ALL.len())]
            }

            /// Any value but this one.
            pub fn another(self, rng: &mut Rng) -> Self {
                let n = Self::ALL.len();
                Self::ALL[(self as usize + 1 + rng.below(n - 1)) % n]
            }
        }
    };
}

words! {
    /// The outline of the object.
    Shape {
        /// A disc.
        Circle = "circle",
        /// A square.
        Square = "square",
        /// An equilateral triangle.
        Triangle = "triangle",
        /// A five-pointed star.
        Star = "star",
        /// An annulus.
        Ring = "ring",
        /// A plus sign.
        Cross = "cross",
        /// A heart.
        Heart = "heart",
        /// A narrow rhombus.
        Diamond = "diamond",
        /// A waning moon.
        Crescent = "crescent",
        /// An arrow.
        Arrow = "arrow",
    }
}

impl Shape {
    /// The plural noun.
    pub fn plural(self) -> &'static str {
        match self {
            Shape::Circle => "circles",
            Shape::Square => "squares",
            Shape::Triangle => "triangles",
            Shape::Star => "stars",
            Shape::Ring => "rings",
            Shape::Cross => "crosses",
            Shape::Heart => "hearts",
            Shape::Diamond => "diamonds",
            Shape::Crescent => "crescents",
            Shape::Arrow => "arrows",
        }
    }
}

words! {
    /// The colour of the object.
    Colour {
        /// Hue 0°.
        Red = "red",
        /// Hue 28°.
        Orange = "orange",
        /// Hue 55°.
        Yellow = "yellow",
        /// Hue 125°.
        Green = "green",
        /// Hue 182°.
        Cyan = "cyan",
        /// Hue 225°.
        Blue = "blue",
        /// Hue 275°.
        Purple = "purple",
        /// Hue 325°, pale.
        Pink = "pink",
        /// A dark orange.
        Brown = "brown",
        /// No hue.
        White = "white",
    }
}

words! {
    /// How the object is filled.
    Texture {
        /// One colour.
        Solid = "solid",
        /// Parallel stripes.
        Striped = "striped",
        /// A grid of dots.
        Dotted = "dotted",
        /// A chessboard.
        Checkered = "checkered",
        /// A ramp from bright to dark.
        Shaded = "shaded",
    }
}

impl Texture {
    /// The noun in "a circle with stripes"; a solid fill has none.
    pub fn noun(self) -> Option<&'static str> {
        match self {
            Texture::Solid => None,
            Texture::Striped => Some("stripes"),
            Texture::Dotted => Some("dots"),
            Texture::Checkered => Some("checks"),
            Texture::Shaded => Some("shading"),
        }
    }
}

words! {
    /// The pattern behind the object. No word is shared with [`Texture`].
    Backdrop {
        /// One colour.
        Plain = "plain",
        /// A ramp across the picture.
        Faded = "faded",
        /// Thin lines.
        Lined = "lined",
        /// Large tiles.
        Tiled = "tiled",
        /// Grain of a pixel.
        Grainy = "grainy",
        /// Soft blotches.
        Cloudy = "cloudy",
    }
}

words! {
    /// The colour of the background. No word is shared with [`Colour`].
    Ground {
        /// Nearly black.
        Black = "black",
        /// Middle grey.
        Gray = "gray",
        /// Dark yellow-green.
        Olive = "olive",
        /// Dark blue.
        Navy = "navy",
        /// Pale sand.
        Beige = "beige",
        /// Pale violet.
        Lilac = "lilac",
        /// Dark cyan.
        Teal = "teal",
        /// Dark red.
        Maroon = "maroon",
    }
}

words! {
    /// The size of the object by its radius; a medium one is never spoken of.
    Size {
        /// Radius below 6 pixels.
        Small = "small",
        /// Between.
        Medium = "medium",
        /// Radius above 9 pixels.
        Large = "large",
    }
}

words! {
    /// Where a single object is.
    Place {
        /// Left of the middle.
        Left = "left",
        /// Right of the middle.
        Right = "right",
        /// Above the middle.
        Top = "top",
        /// Below the middle.
        Bottom = "bottom",
        /// Within 4 pixels of the middle in both directions.
        Middle = "middle",
    }
}

/// Colour, texture and shape: what a class of the benchmark is, and what "held out" is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Composition {
    /// The object's colour.
    pub colour: Colour,
    /// The object's fill.
    pub texture: Texture,
    /// The object's outline.
    pub shape: Shape,
}

impl Composition {
    /// How many there are: 10 colours × 5 textures × 10 shapes.
    pub const COUNT: usize = Colour::ALL.len() * Texture::ALL.len() * Shape::ALL.len();

    /// Number `index` below [`Composition::COUNT`]; larger ones wrap.
    pub fn nth(index: usize) -> Self {
        let (shapes, textures) = (Shape::ALL.len(), Texture::ALL.len());
        Composition {
            colour: Colour::ALL[index / (shapes * textures) % Colour::ALL.len()],
            texture: Texture::ALL[index / shapes % textures],
            shape: Shape::ALL[index % shapes],
        }
    }

    /// The number that [`Composition::nth`] takes: the label of supervised pretraining on the pool.
    pub fn index(self) -> usize {
        (self.colour as usize * Texture::ALL.len() + self.texture as usize) * Shape::ALL.len() + self.shape as usize
    }

    /// `red striped circle`.
    pub fn name(self) -> String {
        format!("{} {} {}", self.colour.word(), self.texture.word(), self.shape.word())
    }

    /// Reads `red striped circle`; an unknown word lists the valid ones.
    pub fn parse(name: &str) -> Result<Self> {
        let words: Vec<&str> = name.split_whitespace().collect();
        let [colour, texture, shape] = words[..] else {
            return Err(Error::input(format!("the class {name:?} is not a colour, a texture and a shape"))
                .hint("write it as \"red striped circle\""));
        };
        Ok(Composition {
            colour: Colour::from_word(colour).ok_or_else(|| unknown("colour", colour, Colour::ALL, Colour::word))?,
            texture: Texture::from_word(texture)
                .ok_or_else(|| unknown("texture", texture, Texture::ALL, Texture::word))?,
            shape: Shape::from_word(shape).ok_or_else(|| unknown("shape", shape, Shape::ALL, Shape::word))?,
        })
    }

    /// Uniform over all compositions that are not in `except` (sorted).
    pub(super) fn draw_except(rng: &mut Rng, except: &[Composition]) -> Self {
        loop {
            let drawn = Composition::nth(rng.below(Self::COUNT));
            if except.binary_search(&drawn).is_err() {
                return drawn;
            }
        }
    }
}

fn unknown<T: Copy>(kind: &str, word: &str, all: &[T], name: fn(T) -> &'static str) -> Error {
    let valid: Vec<&str> = all.iter().map(|v| name(*v)).collect();
    let error = Error::input(format!("{word:?} is no {kind} of the world; there are {}", valid.join(", ")));
    match closest(word, valid.iter().copied()) {
        Some(near) => error.hint(format!("did you mean {near:?}?")),
        None => error,
    }
}

/// What is true of a picture and can be said of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attributes {
    /// Of the object, or of each of the equal objects.
    pub composition: Composition,
    /// Objects, 1 to 3.
    pub count: u8,
    /// By radius.
    pub size: Size,
    /// Of a single object only.
    pub place: Option<Place>,
    /// The background's pattern.
    pub backdrop: Backdrop,
    /// The background's colour.
    pub ground: Ground,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_composition_has_its_own_number_and_name_and_is_read_back() {
        for i in 0..Composition::COUNT {
            let c = Composition::nth(i);
            assert_eq!(c.index(), i);
            assert_eq!(Composition::parse(&c.name()).unwrap(), c);
        }
    }

    #[test]
    fn a_mistyped_class_lists_the_words_and_names_the_nearest() {
        let e = Composition::parse("red stripped circle").unwrap_err().to_string();
        assert!(e.contains("checkered") && e.contains("did you mean \"striped\""), "{e}");
        assert!(Composition::parse("circle").is_err());
    }
}
