//! Tests of the arm as a whole, on tiny models.

mod fixture;
mod goldens;
mod gradients;
mod trial;
