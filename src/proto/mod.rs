//! Decisions: pure machines. Facts go in, a small `Todo` comes out; `relay` carries it out.

pub mod fragments;

pub mod tcp;

pub mod repair;

pub mod pesto;

pub mod state;
