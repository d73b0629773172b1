//! Run directories → tables and figures. Reads only what a run wrote.
//!
//! | file | what |
//! |---|---|
//! | `runs` `keys` | directories → runs: which are finished, what each says of its stages and of its config |
//! | `group` `naming` | runs → rows: one configuration over its seeds, one stage; what tells rows apart |
//! | `numbers` | means, deviations, Student's intervals |
//! | `summary` | rows → the tables of `report`, its JSON, its sheet |
//! | `contrast` | an experiment's own questions → paired differences |
//! | `pivot` `published` | planned runs → rows × columns of an experiment's own table, published numbers beside ours |
//! | `attribute` | what is lost when a part of the method is left out |
//! | `side` `compare` | two sides → paired differences and a sentence |
//! | `views` | accuracy of each class, of each client |
//! | `table` `format` | a table that gets narrow; terminal, Markdown, LaTeX, CSV |
//! | `page` | tables, figures and runs as one HTML file |
//! | `figures` | rows → series and squares → SVG |

pub mod attribute;
pub mod compare;
pub mod contrast;
pub mod figures;
pub mod format;
pub mod group;
pub mod keys;
pub mod naming;
pub mod numbers;
pub mod page;
pub mod pivot;
pub mod published;
pub mod runs;
pub mod side;
pub mod summary;
pub mod table;
pub mod views;

pub use contrast::Contrasts;
pub use format::View;
pub use group::{Report, Row};
pub use runs::EXPERIMENT;
pub use table::Room;
