//! Runs the tests that stand beside the training example's model and text.

#![allow(dead_code, reason = "the example uses the rest")]

#[path = "../examples/train_lm/data.rs"]
mod data;
#[path = "../examples/train_lm/model.rs"]
mod model;
