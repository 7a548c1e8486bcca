//! State tensors as they lie in an extent.

use half::bf16;

use super::codec::{Decode, Encode};
use super::rounding::{Rounder, TileRounder};
use super::width::{Width, on_width};
use crate::state::{Codec, INT8_BLOCK_ELEMS, StateTensor};

/// Some elements of a state tensor, as they lie in an extent.
#[derive(Clone, Copy, Debug)]
pub enum Section<'a> {
    /// See [`Codec::Fp32`].
    Fp32(&'a [f32]),
    /// See [`Codec::Bf16`].
    Bf16(&'a [u16]),
    /// See [`Codec::Remainder16`].
    Remainder16(&'a [u16]),
    /// See [`Codec::Int8`].
    Int8 {
        /// One byte an element.
        codes: &'a [u8],
        /// One for each block.
        scales: &'a [f32],
        /// Whether codes are two's complement.
        is_signed: bool,
    },
}

/// As [`Section`], to be changed.
#[derive(Debug)]
pub enum SectionMut<'a> {
    /// See [`Codec::Fp32`].
    Fp32(&'a mut [f32]),
    /// See [`Codec::Bf16`].
    Bf16(&'a mut [u16]),
    /// See [`Codec::Remainder16`].
    Remainder16(&'a mut [u16]),
    /// See [`Codec::Int8`].
    Int8 {
        /// One byte an element.
        codes: &'a mut [u8],
        /// One for each block.
        scales: &'a mut [f32],
        /// Whether codes are two's complement.
        is_signed: bool,
    },
}

impl<'a> Section<'a> {
    /// The section of a tensor with `elems` elements, whole blocks.
    pub fn new(tensor: &StateTensor, bytes: &'a [u8], elems: usize) -> Self {
        match tensor.codec {
            Codec::Fp32 => Self::Fp32(bytemuck::cast_slice(bytes)),
            Codec::Bf16 => Self::Bf16(bytemuck::cast_slice(bytes)),
            Codec::Remainder16 => Self::Remainder16(bytemuck::cast_slice(bytes)),
            Codec::Int8 => {
                let (codes, scales) = bytes.split_at(elems);
                let scales = &bytemuck::cast_slice(scales)[..elems / INT8_BLOCK_ELEMS];
                Self::Int8 { codes, scales, is_signed: tensor.is_signed }
            }
        }
    }

    /// Decodes all elements. `uppers` are the upper halves of a master of which only the lower ones
    /// are here; where they are fewer than the elements, the rest of the master is zero.
    pub fn decode(self, uppers: &[bf16], out: &mut [f32]) {
        self.decode_on(Width::widest(), uppers, out);
    }

    /// As [`Self::decode`], on registers of this width.
    pub(super) fn decode_on(self, width: Width, uppers: &[bf16], out: &mut [f32]) {
        on_width(width, Decode { section: self, uppers, out });
    }
}

impl<'a> SectionMut<'a> {
    /// As [`Section::new`].
    pub fn new(tensor: &StateTensor, bytes: &'a mut [u8], elems: usize) -> Self {
        match tensor.codec {
            Codec::Fp32 => Self::Fp32(bytemuck::cast_slice_mut(bytes)),
            Codec::Bf16 => Self::Bf16(bytemuck::cast_slice_mut(bytes)),
            Codec::Remainder16 => Self::Remainder16(bytemuck::cast_slice_mut(bytes)),
            Codec::Int8 => {
                let (codes, scales) = bytes.split_at_mut(elems);
                let scales = &mut bytemuck::cast_slice_mut(scales)[..elems / INT8_BLOCK_ELEMS];
                Self::Int8 { codes, scales, is_signed: tensor.is_signed }
            }
        }
    }

    /// No elements.
    pub fn empty() -> Self {
        Self::Fp32(&mut [])
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Fp32(values) => values.len(),
            Self::Bf16(codes) | Self::Remainder16(codes) => codes.len(),
            Self::Int8 { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements lie as f32, without a code.
    pub(super) fn is_fp32(&self) -> bool {
        matches!(self, Self::Fp32(_))
    }

    /// The same elements, to be read.
    pub fn as_section(&self) -> Section<'_> {
        match self {
            Self::Fp32(values) => Section::Fp32(values),
            Self::Bf16(codes) => Section::Bf16(codes),
            Self::Remainder16(lowers) => Section::Remainder16(lowers),
            Self::Int8 { codes, scales, is_signed } => {
                Section::Int8 { codes, scales, is_signed: *is_signed }
            }
        }
    }

    /// The first `elems` elements, whole blocks, cut off.
    pub fn cut(&mut self, elems: usize) -> SectionMut<'a> {
        fn front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
            let len = len.min(slice.len());
            let (front, back) = std::mem::take(slice).split_at_mut(len);
            *slice = back;
            front
        }
        match self {
            Self::Fp32(values) => SectionMut::Fp32(front(values, elems)),
            Self::Bf16(codes) => SectionMut::Bf16(front(codes, elems)),
            Self::Remainder16(lowers) => SectionMut::Remainder16(front(lowers, elems)),
            Self::Int8 { codes, scales, is_signed } => SectionMut::Int8 {
                codes: front(codes, elems),
                scales: front(scales, elems.div_ceil(INT8_BLOCK_ELEMS)),
                is_signed: *is_signed,
            },
        }
    }

    /// Encodes all elements; `uppers` takes the upper halves of a master of which only the lower
    /// ones are kept here.
    pub(super) fn encode(&mut self, values: &[f32], uppers: &mut [bf16], rounder: TileRounder) {
        self.encode_on(Width::widest(), values, uppers, rounder);
    }

    /// As [`Self::encode`], on registers of this width.
    pub(super) fn encode_on(
        &mut self,
        width: Width,
        values: &[f32],
        uppers: &mut [bf16],
        rounder: TileRounder,
    ) {
        on_width(width, Encode { section: self, values, uppers, rounder });
    }

    /// Encodes all elements as a step rounds them: of the state tensor of this number, from this
    /// element of its random numbers on.
    pub fn encode_at(
        &mut self,
        values: &[f32],
        uppers: &mut [bf16],
        rounder: Rounder,
        tensor: u64,
        at: u64,
    ) {
        self.encode(values, uppers, rounder.tile(tensor, at));
    }

    /// Encodes all elements, rounding to the nearest: for values that come from elsewhere.
    pub fn encode_nearest(&mut self, values: &[f32], uppers: &mut [bf16]) {
        self.encode(values, uppers, TileRounder::nearest());
    }
}
