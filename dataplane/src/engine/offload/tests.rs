//! Both ways against a plain model, written from the RFCs: one packet after the other, nothing shared with the code it checks but the
//! meaning of the words.

mod model;
mod rejoin;
mod split;
