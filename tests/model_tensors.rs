//! What the tensors of a model's files mean: weights in eight bits with their scales, what is no
//! weight, what cannot be taken; and names that would break a table.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::Path;

use half::bf16;
use optswap::{ErrorKind, ModelFiles, NoParameters, ParamIndex};
use serde_json::json;
use support::tensors::{Tensor, f32_tensor, f32s, tensor, values, write, write_index};
use support::world::{config_for, durable_config_for, inventory, masters, on_ranks, step_until};
use support::{Drives, Run, alone, optswap};

/// Numbers of four values in F8_E4M3: 448, -448, 1, -1.
const QUANTA: [(u8, f32); 4] = [(0x7e, 448.0), (0xfe, -448.0), (0x38, 1.0), (0xb8, -1.0)];

fn quantum(elem: usize) -> (u8, f32) {
    QUANTA[elem * 7 / 5 % 4]
}

fn f8(shape: &[usize]) -> Tensor {
    let bytes = (0..shape.iter().product()).map(|elem| quantum(elem).0);
    tensor("F8_E4M3", shape, bytes.collect::<Vec<u8>>())
}

/// All values of a parameter, read in pieces of odd lengths.
fn read(model: &ModelFiles, param: u32, piece: usize) -> Vec<f32> {
    let param = ParamIndex(param);
    let mut found = vec![0.0; model.inventory().elems(param) as usize];
    for (number, out) in found.chunks_mut(piece).enumerate() {
        model.read(param, (number * piece) as u64, out).unwrap();
    }
    found
}

fn init(from: &Path, drives: &Drives) -> Run {
    let from = from.display().to_string();
    alone(&optswap(), &["init", "--from", &from, "--drives", &drives.list(1)])
}

#[test]
fn weights_in_eight_bits_are_dequantised_by_the_scale_beside_them() {
    let drives = Drives::new(1);
    let (rows, columns) = (200, 300);
    let bf16s = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
    };
    let per_row: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32 / 64.0).collect();
    type ScaleOf<'a> = &'a dyn Fn(usize, usize) -> f32;
    let blocks = |row: usize, column: usize| values(9, 6)[row / 128 * 3 + column / 128];
    let cases: [(&str, Tensor, ScaleOf); 5] = [
        ("up.weight_scale_inv", f32s(9, &[2, 3]), &blocks),
        ("up.weight_scale", tensor("BF16", &[], bf16s(&[0.125])), &|_, _| 0.125),
        ("up.weight_scale", f32_tensor(&[rows, 1], &per_row), &|row, _| per_row[row]),
        ("up.scale_weight", f32_tensor(&[1], &[3.0]), &|_, _| 3.0),
        ("up.scale", tensor("F8_E8M0", &[2, 3], [120, 121, 122, 123, 124, 125]), &|row, column| {
            2f32.powi((row / 128 * 3 + column / 128) as i32 - 7)
        }),
    ];
    for (name, scale, scale_of) in cases {
        // The scale is in another file than the weight.
        let (one, two) = ("model-1.safetensors", "model-2.safetensors");
        let activations = f32_tensor(&[], &[2.0]);
        write(&drives.path().join(one), &[("up.weight", f8(&[rows, columns]))]);
        let tensors =
            [(name, scale), ("up.input_scale", activations), ("norm", f32s(1, &[columns]))];
        write(&drives.path().join(two), &tensors);
        let files = [("up.weight", one), (name, two), ("up.input_scale", two), ("norm", two)];
        let index = write_index(drives.path(), json!({}), &files);
        let model = ModelFiles::open(&index).unwrap();
        let names = model.inventory().parameters().iter().map(|it| it.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["up.weight", "norm"]);
        assert_eq!(model.skipped(), ["up.input_scale"]);
        let notes = model.notes().join("\n");
        assert!(
            notes.contains(&format!(
                "dequantised, with the scale beside it: 1 fp8 tensor: up.weight (by {name})"
            )),
            "{notes}"
        );
        assert!(notes.contains("scales of activations: up.input_scale"), "{notes}");
        let expected: Vec<f32> = (0..rows * columns)
            .map(|elem| quantum(elem).1 * scale_of(elem / columns, elem % columns))
            .collect();
        for piece in [rows * columns, 4096, 701] {
            assert!(read(&model, 0, piece) == expected, "{name} in pieces of {piece}");
        }
    }
}

#[test]
fn experts_in_one_tensor_have_scales_of_their_own() {
    let drives = Drives::new(1);
    let path = drives.path().join("m.safetensors");
    let shape = [3, 130, 4];
    let tensors = [("experts.up", f8(&shape)), ("experts.up_scale_inv", f32s(2, &[3, 2, 1]))];
    let model = ModelFiles::open(&write(&path, &tensors)).unwrap();
    let scales = values(2, 6);
    let expected: Vec<f32> = (0..3 * 130 * 4)
        .map(|elem| quantum(elem).1 * scales[elem / 520 * 2 + elem % 520 / 4 / 128])
        .collect();
    assert_eq!(read(&model, 0, 97), expected);
}

#[test]
fn eight_bits_without_any_scale_are_numbers_and_it_is_said() {
    let drives = Drives::new(1);
    let path = drives.path().join("m.safetensors");
    let model = ModelFiles::open(&write(&path, &[("w", f8(&[8, 8]))])).unwrap();
    assert_eq!(read(&model, 0, 64), (0..64).map(|elem| quantum(elem).1).collect::<Vec<_>>());
    assert!(model.notes()[0].contains("taken as it is, without a scale: 1 fp8 tensor: w"));
}

#[test]
fn tensors_whose_meaning_is_not_known_are_refused_by_name() {
    let drives = Drives::new(1);
    let norm = || ("norm.weight", f32s(0, &[256]));
    let ints = |dtype, shape: &[usize], bytes: usize| tensor(dtype, shape, vec![1; bytes]);
    type Case<'a> = (&'a [(&'a str, Tensor)], &'a [&'a str]);
    let cases: [Case<'_>; 7] = [
        (
            &[("l.w", ints("F4", &[64, 64], 2048)), ("l.w_scale", ints("F8_E8M0", &[64, 2], 128))],
            &["tensor l.w,", "type F4", "four bits", "such tensors 2"],
        ),
        (
            &[
                ("e.up_blocks", ints("U8", &[4, 64, 16], 4096)),
                ("e.up_scales", ints("U8", &[4, 64], 256)),
            ],
            &["tensor e.up_blocks", "packed form"],
        ),
        (
            &[("q.qweight", ints("I32", &[8, 64], 2048)), ("q.scales", f32s(1, &[64]))],
            &["tensor q.qweight", "packed form"],
        ),
        (
            &[("up.weight", ints("I8", &[64, 64], 4096)), ("up.weight_scale", f32s(1, &[64, 1]))],
            &["tensor up.weight", "up.weight_scale"],
        ),
        (
            &[("up.weight", f8(&[64, 64])), ("up.weight_scale", f32s(1, &[64, 2]))],
            &["tensor up.weight", "shape [64, 2]", "128 x 128"],
        ),
        (
            &[("up.weight", f32s(0, &[64])), ("up.weight_scale_inv", f32s(1, &[1]))],
            &["tensor up.weight_scale_inv", "scale of up.weight"],
        ),
        (&[("freqs", ints("C64", &[8], 64))], &["tensor freqs", "complex"]),
    ];
    for (number, (tensors, words)) in cases.into_iter().enumerate() {
        let path = drives.path().join(format!("{number}.safetensors"));
        let tensors: Vec<_> = tensors.iter().cloned().chain([norm()]).collect();
        write(&path, &tensors);
        let run = init(&path, &drives);
        run.expect(64, words);
        run.expect(64, &["take the model in f32"]);
        assert!(!run.stderr.contains("not floating-point") && drives.are_empty());
    }
    // A scale that the index leaves out would make other weights of the same file.
    let tensors = [("up.weight", f8(&[4, 4])), ("up.weight_scale_inv", f32s(1, &[1, 1]))];
    write(&drives.path().join("s.safetensors"), &tensors);
    let index = write_index(drives.path(), json!({}), &[("up.weight", "s.safetensors")]);
    init(&index, &drives).expect(64, &["does not name the scale", "up.weight_scale_inv"]);
}

#[test]
fn what_is_no_weight_is_left_out_by_name_and_scalars_are_weights() {
    let drives = Drives::new(1);
    let model = write(
        &drives.path().join("m.safetensors"),
        &[
            ("h.0.cache", tensor("F32", &[0], [])),
            ("h.0.slots", tensor("BF16", &[8, 0], [])),
            ("logit_scale", f32s(1, &[])),
            ("embeddings.position_ids", tensor("I64", &[1, 4], [0; 32])),
            ("h.0.attn.bias", tensor("BOOL", &[1, 1, 64, 64], [1; 4096])),
            ("h.0.weight", f32s(2, &[20, 20])),
        ],
    );
    let run = init(&model, &drives);
    run.expect(0, &[]);
    for words in [
        "2 parameters, 401 elements",
        "no elements: h.0.cache, h.0.slots",
        "not floating-point: embeddings.position_ids, h.0.attn.bias",
        "warning: what is left out has 4.03 KiB",
    ] {
        assert!(run.stdout.contains(words), "`{words}` is not in:\n{}", run.stdout);
    }
    let inspect = alone(&optswap(), &["inspect", &drives.list(1)]);
    let row = inspect.stdout.lines().find(|line| line.starts_with("| logit_scale")).unwrap();
    assert!(row.contains("-1.4688e0"), "{row}");
}

#[test]
fn names_of_any_characters_stay_in_their_line() {
    let drives = Drives::new(1);
    let name = "a\n| b\t\u{1b}[2J";
    let escaped = r"a\n| b\t\u{1b}[2J";
    let path = drives.path().join("m.safetensors");
    write(&path, &[(name, f32s(1, &[5000])), ("ids\r", tensor("I64", &[1], [0; 8]))]);
    let run = init(&path, &drives);
    run.expect(0, &[]);
    assert!(run.stdout.contains(r"not floating-point: ids\r"), "{}", run.stdout);
    let inspect = alone(&optswap(), &["inspect", &drives.list(1)]);
    inspect.expect(0, &[]);
    let rows: Vec<&str> = inspect.stdout.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 3, "{}", inspect.stdout);
    assert!(rows[2].starts_with(&format!("| {escaped} | 5000")), "{}", rows[2]);
    assert_eq!(rows[0].len(), rows[2].len(), "{}", inspect.stdout);
    let other = drives.path().join("other.safetensors");
    write(&other, &[(name, tensor("F4", &[4], [0; 2]))]);
    let refused = init(&other, &drives);
    refused.expect(64, &[&format!("tensor {escaped},")]);
    assert!(!refused.stderr.contains('\u{1b}'), "{}", refused.stderr);
}

#[test]
fn weights_that_are_no_numbers_are_refused_before_anything_is_committed() {
    let drives = Drives::new(1);
    let mut weights = values(1, 5000);
    (weights[4711], weights[4800]) = (f32::NEG_INFINITY, f32::NAN);
    let path = drives.path().join("m.safetensors");
    write(&path, &[("ok", f32s(0, &[4000])), ("w", f32_tensor(&[50, 100], &weights))]);
    let words = ["NaN or infinite", "parameter w", "element 4711", "value -inf", "2 of elements"];
    init(&path, &drives).expect(64, &words);
    assert!(drives.are_empty());
    let from = path.display().to_string();
    let to = drives.path().join("checkpoints/default/step-00000000");
    let import = ["import", &from, "--checkpoint", &to.display().to_string()];
    alone(&optswap(), &import).expect(64, &words);
    assert!(!drives.path().join("checkpoints").exists());
}

#[test]
fn masters_that_are_no_numbers_on_one_rank_are_an_error_of_all() {
    let drives = Drives::new(1);
    const SIZES: [usize; 2] = [9000, 5000];
    for config in [config_for(&drives), durable_config_for(&drives, 1)] {
        let results = on_ranks(2, |comm| {
            let options = optswap::CreateOptions::default();
            let mut optimizer =
                optswap::SwappedOptimizer::create(&config, inventory(&SIZES), comm, options)?;
            let flat_start = optimizer.partition().flat().start;
            let refused = optimizer.initialize_parameters(&mut NoParameters, |run, masters| {
                masters.fill(0.5);
                if run.param == ParamIndex(1) && run.param_offset == 0 {
                    masters[70] = f32::NAN;
                }
                Ok(())
            });
            let error = refused.unwrap_err();
            assert!(error.is_agreed() && error.kind() == ErrorKind::Usage, "{error}");
            for words in ["NaN or infinite", "layer1.bias", "element 70", "1 of elements 0.."] {
                assert!(error.to_string().contains(words), "{error}");
            }
            // Nothing was begun, so it may begin with other values.
            optimizer.initialize_parameters(&mut NoParameters, masters(flat_start))?;
            step_until(&mut optimizer, 2)?;
            optimizer.close();
            Ok(())
        });
        results.into_iter().for_each(|result| result.unwrap());
    }
}
