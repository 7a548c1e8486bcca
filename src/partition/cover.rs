//! Checks of pieces: that they are parts of parameters, and that all ranks' pieces together have
//! every element once.

use super::piece::Piece;
use crate::error::{Error, Result};
use crate::state::Inventory;
use crate::units::{ParamIndex, Rank};

/// Checks that the pieces of one rank are parts of known parameters and do not overlap. Returns
/// them without the empty ones.
///
/// # Errors
/// Usage, with parameter and range of the first piece that is wrong.
pub fn check_pieces(inventory: &Inventory, pieces: &[Piece]) -> Result<Vec<Piece>> {
    for (number, piece) in pieces.iter().enumerate() {
        let wrong = |message: &str| {
            Error::usage(message)
                .with("piece", number)
                .with("offset", piece.offset)
                .with("length", piece.elems)
        };
        if piece.param.index() >= inventory.parameters().len() {
            return Err(wrong("a piece of an unknown parameter")
                .with("index", piece.param)
                .with("parameters", inventory.parameters().len()));
        }
        let elems = inventory.elems(piece.param);
        if piece.offset.checked_add(piece.elems).is_none_or(|end| end > elems) {
            return Err(wrong("a piece beyond its parameter's end")
                .with("parameter", &inventory.parameter(piece.param).name)
                .with("elements of the parameter", elems));
        }
    }
    let pieces: Vec<Piece> = pieces.iter().copied().filter(|piece| piece.elems > 0).collect();
    let mut sorted = pieces.clone();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if pair[0].param == pair[1].param && pair[1].offset < pair[0].range().end {
            let end = pair[0].range().end.min(pair[1].range().end);
            return Err(Error::usage("a rank's own pieces overlap")
                .with("parameter", &inventory.parameter(pair[1].param).name)
                .with("elements", format!("{}..{end}", pair[1].offset)));
        }
    }
    Ok(pieces)
}

/// Checks that the pieces of all ranks that share an inventory cover every element once, and those
/// of replicated parameters at least once. Each list must come from [`check_pieces`]. Returns for
/// each rank the elements that another rank has too and that count there.
///
/// # Errors
/// Usage, with the parameter and the range of elements that no rank has, or that two ranks have.
pub fn check_cover(
    inventory: &Inventory,
    ranks: &[Rank],
    pieces: &[Vec<Piece>],
) -> Result<Vec<Vec<Piece>>> {
    let all = pieces.iter().enumerate();
    let all = all.flat_map(|(owner, list)| list.iter().map(move |piece| (*piece, owner)));
    let mut all: Vec<(Piece, usize)> = all.collect();
    // Of pieces that begin alike, the longer one of the lower rank counts.
    all.sort_by_key(|(piece, owner)| (piece.param, piece.offset, *owner));
    let mut copies = vec![Vec::new(); pieces.len()];
    let mut sorted = all.into_iter().peekable();
    for param in (0..inventory.parameters().len()).map(ParamIndex::from_index) {
        let parameter = inventory.parameter(param);
        let wrong = |message: &str, from: u64, to: u64| {
            Error::usage(message)
                .with("parameter", &parameter.name)
                .with("elements", format!("{from}..{to}"))
        };
        let nobody = |from, to| Err(wrong("elements of a parameter belong to no rank", from, to));
        let (mut covered, mut last_owner) = (0, 0);
        while let Some((piece, owner)) = sorted.next_if(|(piece, _)| piece.param == param) {
            if piece.offset > covered {
                return nobody(covered, piece.offset);
            }
            let end = piece.range().end;
            let known = covered.min(end);
            if piece.offset < known {
                if !parameter.replicated {
                    return Err(wrong(
                        "elements of a parameter belong to two ranks",
                        piece.offset,
                        known,
                    )
                    .with("ranks", format!("{} and {}", ranks[last_owner].0, ranks[owner].0))
                    .hint("declare the parameter as replicated if both keep a copy of it"));
                }
                copies[owner].push(Piece::new(param, piece.offset, known - piece.offset));
            }
            if end > covered {
                (covered, last_owner) = (end, owner);
            }
        }
        if covered < inventory.elems(param) {
            return nobody(covered, inventory.elems(param));
        }
    }
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Parameter;

    fn inventory() -> Inventory {
        let parameters =
            vec![Parameter::new("w", [100]), Parameter::new("norm", [10]).replicated()];
        Inventory::new(parameters).unwrap()
    }

    fn piece(param: u32, offset: u64, elems: u64) -> Piece {
        Piece::new(ParamIndex(param), offset, elems)
    }

    fn cover(pieces: &[Vec<Piece>]) -> Result<Vec<Vec<Piece>>> {
        check_cover(&inventory(), &[Rank(4), Rank(6)], pieces)
    }

    #[test]
    fn every_element_has_one_owner_or_is_a_declared_copy() {
        let halves =
            [vec![piece(1, 0, 10), piece(0, 0, 30)], vec![piece(0, 30, 70), piece(1, 4, 6)]];
        assert_eq!(cover(&halves).unwrap(), [vec![], vec![piece(1, 4, 6)]]);
        let refused = |pieces: &[Vec<Piece>]| cover(pieces).unwrap_err().to_string();
        let gap = refused(&[vec![piece(0, 0, 30)], vec![piece(0, 40, 60), piece(1, 0, 10)]]);
        assert!(gap.contains("no rank") && gap.contains("w") && gap.contains("30..40"), "{gap}");
        let end = refused(&[vec![piece(0, 0, 100)], vec![piece(1, 0, 9)]]);
        assert!(end.contains("norm") && end.contains("9..10"), "{end}");
        let twice = refused(&[vec![piece(0, 0, 60)], vec![piece(0, 50, 50), piece(1, 0, 10)]]);
        assert!(twice.contains("50..60") && twice.contains("4 and 6"), "{twice}");
    }

    #[test]
    fn a_rank_has_parts_of_parameters_each_once() {
        let refused =
            |pieces: &[Piece]| check_pieces(&inventory(), pieces).unwrap_err().to_string();
        assert!(refused(&[piece(2, 0, 1)]).contains("unknown parameter"));
        assert!(refused(&[piece(0, 99, 2)]).contains("beyond its parameter's end"));
        assert!(refused(&[piece(0, u64::MAX, 2)]).contains("beyond its parameter's end"));
        let twice = refused(&[piece(1, 3, 5), piece(0, 0, 1), piece(1, 0, 4)]);
        assert!(twice.contains("norm") && twice.contains("3..4"), "{twice}");
        let kept = check_pieces(&inventory(), &[piece(0, 5, 0), piece(0, 0, 5)]).unwrap();
        assert_eq!(kept, [piece(0, 0, 5)], "empty pieces mean nothing");
    }
}
