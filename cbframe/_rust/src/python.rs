//! The module `cbframe._core`.

use crate::caught;
use crate::documents::{copy, newest, Spans};
use crate::frames::{Block, FrameDecoder, Wrong};
use crate::json::blocks::{block_size, Batch, Columns};
use crate::json::build::{rest, Array, Buffer, Layout, Type};
use crate::json::facts::{Facts, Place, KINDS};
use crate::json::shred::{Inside, Shredder, ROOT};
use crate::json::token::Text;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::ffi::c_int;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Decoder>()?;
    module.add_class::<Decoded>()?;
    module.add_function(wrap_pyfunction!(copy_documents, module)?)?;
    module.add_function(wrap_pyfunction!(newest_versions, module)?)?;
    module.add_class::<Converter>()?;
    module.add_class::<ColumnFacts>()?;
    module.add_class::<Bytes>()
}

/// A buffer that Arrow takes over without a copy.
#[pyclass(frozen, name = "Buffer")]
struct Bytes(Buffer);

impl Bytes {
    fn parts(&self) -> (*const u8, usize) {
        fn of<T>(values: &[T]) -> (*const u8, usize) {
            (values.as_ptr().cast(), size_of_val(values))
        }
        match &self.0 {
            Buffer::Bytes(values) => of(values),
            Buffer::Words16(values) => of(values),
            Buffer::Words32(values) => of(values),
            Buffer::Offsets(values) => of(values),
            Buffer::Int64(values) => of(values),
            Buffer::UInt64(values) => of(values),
            Buffer::Double(values) => of(values),
            Buffer::Decimal(values) => of(values),
        }
    }
}

#[pymethods]
impl Bytes {
    unsafe fn __getbuffer__(this: Bound<'_, Self>, view: *mut pyo3::ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (start, length) = this.get().parts();
        // SAFETY: the view keeps this object, which never changes, and with it what is pointed at; it is read-only.
        let result =
            unsafe { pyo3::ffi::PyBuffer_FillInfo(view, this.as_ptr(), start as *mut _, length as isize, 1, flags) };
        if result == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(this.py()))
        }
    }
}

/// A buffer that Python lends: bytes of documents and numbers about them.
struct Lent<T: pyo3::buffer::Element>(PyBuffer<T>);

impl<T: pyo3::buffer::Element> Lent<T> {
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("a buffer is not contiguous"));
        }
        Ok(Lent(buffer))
    }

    fn slice(&self) -> &[T] {
        if self.0.item_count() == 0 {
            return &[];
        }
        // SAFETY: it is contiguous, and lives as long as `self`. Nobody writes to buffers of Arrow and to what
        // a caller hands over for the time of a call: that is the contract of this module.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast(), self.0.item_count()) }
    }
}

/// Do some work while other threads of Python run.
///
/// A panic is a RuntimeError, so that it ends the read: pyo3 raises what no `except Exception` catches, and the
/// thread of a node would be gone without a word.
fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    py.detach(|| caught(work)).map_err(|text| PyRuntimeError::new_err(format!("the compiled core has failed: {text}")))
}

struct Lending {
    data: Lent<u8>,
    offsets: Lent<i32>,
    vbuckets: Lent<u16>,
    seqnos: Lent<u64>,
    verdicts: Vec<u8>,
    /// Of all documents, if they were read block by block, and the columns, until they are asked for.
    facts: Option<Facts>,
    columns: Option<Vec<Array>>,
}

impl Lending {
    fn batch(&self) -> Batch<'_> {
        Batch {
            all: self.data.slice(),
            bounds: self.offsets.slice(),
            vbuckets: self.vbuckets.slice(),
            seqnos: self.seqnos.slice(),
        }
    }

    /// Have the cells of all documents.
    fn read(&mut self, shredder: &mut Shredder) {
        let mut verdicts = std::mem::take(&mut self.verdicts);
        self.batch().read(shredder, 0..verdicts.len(), &mut verdicts);
        (self.verdicts, self.facts) = (verdicts, None);
    }
}

/// Documents to columns; for one thread at a time.
#[pyclass]
struct Converter {
    shredder: Shredder,
    batch: Option<Lending>,
    /// What was built of the batch before, and whether it is worth it to build that block by block.
    expected: Columns,
    by_blocks: bool,
}

#[pymethods]
impl Converter {
    #[new]
    #[pyo3(signature = (max_members, known = None, *, keeps_rest = false))]
    fn new(max_members: usize, known: Option<Bound<'_, PyAny>>, keeps_rest: bool) -> PyResult<Self> {
        let mut shredder = Shredder::new(max_members);
        shredder.keeps_rest = keeps_rest;
        if let Some(known) = known {
            configure(&mut shredder, ROOT, &known)?;
        }
        shredder.remember();
        Ok(Converter { shredder, batch: None, expected: Vec::new(), by_blocks: true })
    }

    /// Take in a batch, and forget the one before.
    ///
    /// `offsets` are those of a binary array with `data`; `reasons` has a byte for each document, and those that
    /// are not 0 are passed over. The result is the same with the reason of each that is no document.
    fn shred(
        &mut self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        reasons: &Bound<'_, PyAny>,
        vbuckets: &Bound<'_, PyAny>,
        seqnos: &Bound<'_, PyAny>,
    ) -> PyResult<Bytes> {
        self.batch = None;
        self.shredder.clear();
        let (data, offsets) = (Lent::<u8>::new(data)?, Lent::<i32>::new(offsets)?);
        let reasons = Lent::<u8>::new(reasons)?;
        let (vbuckets, seqnos) = (Lent::<u16>::new(vbuckets)?, Lent::<u64>::new(seqnos)?);
        let rows = reasons.slice().len();
        let bounds = offsets.slice();
        let sound = bounds.len() == rows + 1
            && vbuckets.slice().len() == rows
            && seqnos.slice().len() == rows
            && bounds.windows(2).all(|pair| 0 <= pair[0] && pair[0] <= pair[1])
            && bounds[rows] as usize <= data.slice().len();
        if !sound {
            return Err(PyValueError::new_err("the parts of a batch do not belong together"));
        }
        let verdicts = reasons.slice().to_vec();
        let mut batch = Lending { data, offsets, vbuckets, seqnos, verdicts, facts: None, columns: None };
        let (shredder, expected, worth_it) = (&mut self.shredder, &self.expected, &mut self.by_blocks);
        detached(py, || {
            let mut verdicts = std::mem::take(&mut batch.verdicts);
            let parts = batch.batch();
            let by_blocks = *worth_it && !expected.is_empty() && !shredder.keeps_rest && parts.is_large();
            let size = block_size(shredder);
            let found = by_blocks.then(|| parts.by_blocks(shredder, &mut verdicts, expected, worth_it, size)).flatten();
            batch.verdicts = verdicts;
            match found {
                Some((facts, columns)) => (batch.facts, batch.columns) = (Some(facts), Some(columns)),
                None => batch.read(shredder),
            }
        })?;
        let verdicts = batch.verdicts.clone();
        self.batch = Some(batch);
        Ok(Bytes(Buffer::Bytes(verdicts)))
    }

    /// What the batch's documents have in common; to be asked for before columns are built.
    fn facts(&self, py: Python<'_>) -> PyResult<ColumnFacts> {
        let lending = self.batch.as_ref().ok_or_else(nothing)?;
        let batch = lending.batch();
        let facts = match &lending.facts {
            Some(facts) => facts.clone(),
            None => detached(py, || batch.facts(&self.shredder, 0..batch.rows()))?,
        };
        Ok(ColumnFacts { facts, most: self.shredder.max_members })
    }

    /// Columns of the batch, one for each (name, layout): length, nulls, buffers, children.
    fn build<'py>(
        &mut self,
        py: Python<'py>,
        columns: Vec<(Vec<u8>, Bound<'py, PyAny>)>,
    ) -> PyResult<Bound<'py, PyList>> {
        let columns = columns.into_iter().map(|(name, layout)| Ok((name, layout_of(&layout)?)));
        let columns = columns.collect::<PyResult<Columns>>()?;
        let batch = self.batch.as_mut().ok_or_else(nothing)?;
        let built = match batch.columns.take().filter(|_| columns == self.expected) {
            Some(built) => Ok(built),
            None => {
                let shredder = &mut self.shredder;
                detached(py, || {
                    if batch.facts.is_some() {
                        batch.read(shredder);
                    }
                    batch.batch().build(shredder, batch.verdicts.len(), &columns)
                })?
            }
        };
        self.expected = columns;
        let built = built.map_err(|_| PyValueError::new_err("a column cannot hold its values"))?;
        PyList::new(py, built.into_iter().map(|array| handed(py, array)).collect::<PyResult<Vec<_>>>()?)
    }

    /// The members that are no columns, as JSON text: length, nulls, buffers, children.
    fn rest(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let batch = self.batch.as_ref().ok_or_else(nothing)?;
        let data = batch.data.slice();
        let built = detached(py, || rest(&self.shredder, Text::new(data, data.len()), batch.verdicts.len()))?;
        handed(py, built.map_err(|_| PyValueError::new_err("a column cannot hold its values"))?)
    }

    /// The documents with a value of each kind in a place: names of members, None for items and values.
    fn rows_by_kind(&mut self, place: Vec<Option<Vec<u8>>>) -> Vec<(&'static str, Bytes)> {
        if let Some(batch) = self.batch.as_mut().filter(|batch| batch.facts.is_some()) {
            batch.read(&mut self.shredder);
        }
        let rows = self.shredder.rows_by_kind(&place).into_iter().zip(NAMES);
        rows.filter(|(rows, _)| !rows.is_empty()).map(|(rows, name)| (name, Bytes(Buffer::Words32(rows)))).collect()
    }
}

fn nothing() -> PyErr {
    PyValueError::new_err("there is no batch")
}

fn handed(py: Python<'_>, array: Array) -> PyResult<Py<PyAny>> {
    let buffers = array.buffers.into_iter().map(|buffer| buffer.map(Bytes)).collect::<Vec<_>>();
    let children = array.children.into_iter().map(|child| handed(py, child)).collect::<PyResult<Vec<_>>>()?;
    Ok((array.length, array.nulls, buffers, children).into_pyobject(py)?.into_any().unbind())
}

/// (inside, [(name, configuration)], item, values)
fn configure(shredder: &mut Shredder, id: usize, known: &Bound<'_, PyAny>) -> PyResult<()> {
    type Parts<'py> = (u8, Vec<(Vec<u8>, Bound<'py, PyAny>)>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);
    let (inside, fields, item, values): Parts = known.extract()?;
    for (name, inner) in fields {
        let child = shredder.field(id, &name);
        configure(shredder, child, &inner)?;
    }
    if let Some(inner) = item {
        let child = shredder.item(id);
        configure(shredder, child, &inner)?;
    }
    if let Some(inner) = values {
        let child = shredder.values(id);
        configure(shredder, child, &inner)?;
    }
    shredder.nodes[id].inside = match inside {
        0 => Inside::Fields,
        1 => Inside::Some,
        2 => Inside::Names,
        3 => Inside::Nothing,
        _ => return Err(PyValueError::new_err("no such way to treat what is inside of a field")),
    };
    Ok(())
}

/// (type, kinds that are dropped, what is inside)
fn layout_of(layout: &Bound<'_, PyAny>) -> PyResult<Layout> {
    let (name, dropped, inside): (String, u8, Bound<'_, PyAny>) = layout.extract()?;
    let of = match &name[..] {
        "null" => Type::Null,
        "bool" => Type::Boolean,
        "int64" => Type::Int64,
        "uint64" => Type::UInt64,
        "decimal" => Type::Decimal,
        "double" => Type::Double,
        "text" => Type::Text,
        "written" => Type::Written,
        "json" => Type::Json,
        "list" => Type::List(Box::new(layout_of(&inside)?)),
        "map" => Type::Map(Box::new(layout_of(&inside)?)),
        "struct" => {
            let members: Vec<(Vec<u8>, Bound<'_, PyAny>)> = inside.extract()?;
            let member = |(name, inner): &(Vec<u8>, Bound<'_, PyAny>)| Ok((name.clone().into(), layout_of(inner)?));
            Type::Struct(members.iter().map(member).collect::<PyResult<_>>()?)
        }
        _ => return Err(PyValueError::new_err(format!("no type {name:?}"))),
    };
    Ok(Layout { of, dropped })
}

const NAMES: [&str; KINDS] = ["boolean", "integer", "double", "string", "array", "object"];

/// What values have in common, immutable.
#[pyclass(frozen, name = "Facts")]
struct ColumnFacts {
    facts: Facts,
    most: usize,
}

#[pymethods]
impl ColumnFacts {
    fn __or__(&self, other: &ColumnFacts) -> ColumnFacts {
        let mut facts = self.facts.clone();
        facts.merge_documents(&other.facts, self.most);
        ColumnFacts { facts, most: self.most }
    }

    fn shape(&self) -> u64 {
        self.facts.shape()
    }

    /// As Python objects of which JSON can be made.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = dict(py, &self.facts)?;
        found.set_item("max_members", self.most)?;
        Ok(found)
    }

    /// What `to_dict` gave, of either core.
    #[staticmethod]
    fn from_dict(found: &Bound<'_, PyAny>) -> PyResult<ColumnFacts> {
        Ok(ColumnFacts { facts: facts_of(found)?, most: found.get_item("max_members")?.extract()? })
    }

    fn __eq__(&self, other: &ColumnFacts) -> bool {
        self.facts == other.facts && self.most == other.most
    }
}

fn facts_of(found: &Bound<'_, PyAny>) -> PyResult<Facts> {
    let mut facts = Facts {
        low: found.get_item("low")?.extract()?,
        high: found.get_item("high")?.extract()?,
        inexact: found.get_item("inexact")?.extract()?,
        long: found.get_item("long")?.extract()?,
        beyond: found.get_item("beyond")?.extract()?,
        minus_zero: found.get_item("minus_zero")?.extract()?,
        nul: found.get_item("nul")?.extract()?,
        members: found.get_item("members")?.extract()?,
        present: found.get_item("present")?.extract()?,
        ..Facts::default()
    };
    let (counts, samples) = (found.get_item("counts")?, found.get_item("samples")?);
    for (kind, name) in NAMES.iter().enumerate() {
        if counts.contains(name)? {
            facts.counts[kind] = counts.get_item(name)?.extract()?;
            for place in samples.get_item(name)?.try_iter()? {
                let place = place?;
                facts.samples[kind].push((place.get_item(0)?.extract()?, place.get_item(1)?.extract()?));
            }
        }
    }
    for name in found.get_item("names")?.try_iter()? {
        facts.names.insert(name?.extract()?);
    }
    let inner = |name| -> PyResult<Option<Box<Facts>>> {
        let inner = found.get_item(name)?;
        if inner.is_none() {
            Ok(None)
        } else {
            Ok(Some(Box::new(facts_of(&inner)?)))
        }
    };
    (facts.item, facts.values) = (inner("item")?, inner("values")?);
    for field in found.get_item("fields")?.try_iter()? {
        let field = field?;
        let name: String = field.get_item(0)?.extract()?;
        facts.fields.insert(name.into_bytes().into(), facts_of(&field.get_item(1)?)?);
    }
    Ok(facts)
}

fn dict<'py>(py: Python<'py>, facts: &Facts) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    let counts = PyDict::new(py);
    let samples = PyDict::new(py);
    for (kind, name) in NAMES.into_iter().enumerate() {
        if facts.counts[kind] > 0 {
            counts.set_item(name, facts.counts[kind])?;
            samples.set_item(name, places(py, &facts.samples[kind])?)?;
        }
    }
    found.set_item("counts", counts)?;
    found.set_item("samples", samples)?;
    found.set_item("low", facts.low)?;
    found.set_item("high", facts.high)?;
    for (name, flag) in [
        ("inexact", facts.inexact),
        ("long", facts.long),
        ("beyond", facts.beyond),
        ("minus_zero", facts.minus_zero),
        ("nul", facts.nul),
    ] {
        found.set_item(name, flag)?;
    }
    found.set_item("names", facts.names.iter().copied().collect::<Vec<_>>())?;
    found.set_item("members", facts.members)?;
    found.set_item("present", facts.present)?;
    found.set_item("item", facts.item.as_ref().map(|item| dict(py, item)).transpose()?)?;
    found.set_item("values", facts.values.as_ref().map(|values| dict(py, values)).transpose()?)?;
    let fields = PyList::empty(py);
    for (name, inner) in &facts.fields {
        let name = std::str::from_utf8(name).map_err(|_| PyValueError::new_err("a name is no UTF-8"))?;
        fields.append((name, dict(py, inner)?))?;
    }
    found.set_item("fields", fields)?;
    Ok(found)
}

fn places<'py>(py: Python<'py>, places: &[Place]) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, places.iter().copied())
}

/// The frames of one connection; see `cbframe.wire.blocks.FrameDecoder`.
#[pyclass(name = "FrameDecoder")]
struct Decoder(FrameDecoder);

/// The data messages of a buffer; see `cbframe.wire.blocks.Decoded`.
#[pyclass]
struct Decoded(Block);

#[pymethods]
impl Decoder {
    #[new]
    fn new(max_body: usize) -> Self {
        Decoder(FrameDecoder::new(max_body))
    }

    fn ready(&mut self, collections: bool) {
        self.0.collections = Some(collections);
    }

    fn open(&mut self, vbucket: u16, opaque: u32, seqno: u64) {
        self.0.open(vbucket, opaque, seqno);
    }

    fn close(&mut self, vbucket: u16) {
        self.0.close(vbucket);
    }

    fn forget(&mut self, vbucket: u16) {
        self.0.forget(vbucket);
    }

    fn decode(&mut self, py: Python<'_>, buffer: &Bound<'_, PyAny>, start: usize, stop: usize) -> PyResult<Decoded> {
        let buffer = Lent::<u8>::new(buffer)?;
        let bytes = buffer.slice().get(..stop).ok_or_else(|| PyValueError::new_err("the buffer ends before"))?;
        let decoder = &mut self.0;
        Ok(Decoded(detached(py, || decoder.decode(bytes, start))?))
    }
}

#[pymethods]
impl Decoded {
    fn __len__(&self) -> usize {
        self.0.opcode.len()
    }

    #[getter]
    fn consumed(&self) -> usize {
        self.0.consumed
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes
    }

    #[getter]
    fn messages(&self) -> usize {
        self.0.messages
    }

    #[getter]
    fn more(&self) -> bool {
        self.0.more
    }

    #[getter]
    fn error(&self) -> Option<&'static str> {
        Some(match self.0.error? {
            Wrong::Magic => "magic",
            Wrong::Header => "header",
            Wrong::Early => "early",
            Wrong::Extras => "extras",
            Wrong::CollectionId => "collection_id",
            Wrong::Stream => "stream",
        })
    }

    #[getter]
    fn before(&self) -> Vec<usize> {
        self.0.before.clone()
    }

    #[getter]
    fn after(&self) -> Vec<usize> {
        self.0.after.clone()
    }

    #[getter]
    fn fresh(&self) -> Vec<u16> {
        self.0.fresh.clone()
    }

    /// Taken once.
    fn positions(&mut self) -> (Bytes, Bytes) {
        (words16(&mut self.0.vbuckets), words64(&mut self.0.seqnos))
    }

    /// Taken once.
    fn columns(&mut self) -> Vec<Bytes> {
        let block = &mut self.0;
        vec![
            bytes(&mut block.opcode),
            bytes(&mut block.datatype),
            words16(&mut block.vbucket),
            words32(&mut block.opaque),
            words64(&mut block.cas),
            words64(&mut block.seqno),
            words64(&mut block.rev_seqno),
            words32(&mut block.flags),
            words32(&mut block.expiry),
            words32(&mut block.collection_id),
            signed64(&mut block.key_start),
            signed64(&mut block.value_start),
            signed64(&mut block.value_end),
        ]
    }
}

/// What is in a vector, without the room that it has besides: it may be kept for long.
fn taken<T>(values: &mut Vec<T>) -> Vec<T> {
    values.shrink_to_fit();
    std::mem::take(values)
}
fn bytes(values: &mut Vec<u8>) -> Bytes {
    Bytes(Buffer::Bytes(taken(values)))
}
fn words16(values: &mut Vec<u16>) -> Bytes {
    Bytes(Buffer::Words16(taken(values)))
}
fn words32(values: &mut Vec<u32>) -> Bytes {
    Bytes(Buffer::Words32(taken(values)))
}
fn words64(values: &mut Vec<u64>) -> Bytes {
    Bytes(Buffer::UInt64(taken(values)))
}
fn signed64(values: &mut Vec<i64>) -> Bytes {
    Bytes(Buffer::Int64(taken(values)))
}

/// Copy documents out of a buffer; see `cbframe.arrow.columns`. Returns the datatypes, and offsets and bytes of keys,
/// values, and names and texts of extended attributes, with the offsets of the latter's rows; or the row of the first
/// document that is broken.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn copy_documents(
    py: Python<'_>,
    buffer: &Bound<'_, PyAny>,
    key_start: &Bound<'_, PyAny>,
    value_start: &Bound<'_, PyAny>,
    value_end: &Bound<'_, PyAny>,
    datatype: &Bound<'_, PyAny>,
    max_value: usize,
    keeps_xattrs: bool,
) -> PyResult<Py<PyAny>> {
    let (buffer, datatype) = (Lent::<u8>::new(buffer)?, Lent::<u8>::new(datatype)?);
    let (key_start, value_start) = (Lent::<i64>::new(key_start)?, Lent::<i64>::new(value_start)?);
    let value_end = Lent::<i64>::new(value_end)?;
    let spans = Spans {
        buffer: buffer.slice(),
        key_start: key_start.slice(),
        value_start: value_start.slice(),
        value_end: value_end.slice(),
        datatype: datatype.slice(),
    };
    let documents = match detached(py, || copy(&spans, max_value, keeps_xattrs))? {
        Ok(documents) => documents,
        Err(row) => return Ok(row.into_pyobject(py)?.into_any().unbind()),
    };
    let mut columns = vec![Bytes(Buffer::Bytes(documents.datatype))];
    for column in [documents.key, documents.value, documents.names, documents.texts] {
        columns.push(Bytes(Buffer::Offsets(column.offsets)));
        columns.push(Bytes(Buffer::Bytes(column.bytes)));
    }
    columns.push(Bytes(Buffer::Offsets(documents.xattrs)));
    Ok(columns.into_pyobject(py)?.into_any().unbind())
}

/// Which rows are the newest version of their document, a byte each; see `cbframe.arrow.current_rows.newest`.
#[pyfunction]
fn newest_versions(
    py: Python<'_>,
    collection: &Bound<'_, PyAny>,
    seqno: &Bound<'_, PyAny>,
    offsets: &Bound<'_, PyAny>,
    keys: &Bound<'_, PyAny>,
) -> PyResult<Bytes> {
    let (collection, seqno) = (Lent::<u32>::new(collection)?, Lent::<u64>::new(seqno)?);
    let (offsets, keys) = (Lent::<i32>::new(offsets)?, Lent::<u8>::new(keys)?);
    let (collection, seqno, offsets, keys) = (collection.slice(), seqno.slice(), offsets.slice(), keys.slice());
    let found = py.detach(|| newest(collection, seqno, offsets, keys));
    let found = found.ok_or_else(|| PyValueError::new_err("the columns do not belong together"))?;
    Ok(Bytes(Buffer::Bytes(found)))
}
