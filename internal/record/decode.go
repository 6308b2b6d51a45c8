package record

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"slices"
	"strconv"
	"time"
)

// Decode reads a stored record. It is strict, since a field that it accepted but didn't understand would be
// lost when the record is written again. ErrMalformed is returned for an unknown or missing field, a field or an id
// that occurs twice, an unknown mode, a bad id or number, text that is not UTF-8, data after the end and an
// empty value. White space and the order of fields don't matter.
//
// A schema version above this package's, or an unknown kind, is ErrNewerSchema, whatever
// the other fields are.
//
// Tokens are returned as stored: call Resolve with the revision at which the value was read.
func Decode(b []byte) (*Record, error) {
	d := decoder{scanner: scanner{b: b}}
	if err := d.record(); err != nil {
		return nil, err
	}
	return &d.rec, nil
}

type decoder struct {
	scanner
	rec      Record
	version  uint64
	seen     uint     // fields of the record
	leases   []string // of the ids in a barrier
	missing  bool     // a field of the record is missing
	onlyHead bool     // search version and kind, and skip the rest
	headRead bool     // version and kind are known: they were searched, since they come after other fields
}

// The first fields of a record, as bits of fields.seen.
const (
	hasVersion = 1 << 1
	hasKind    = 1 << 2
)

func (d *decoder) record() error {
	err := d.fields()
	if errors.Is(err, errFieldBeforeHead) {
		// Version and kind decide which fields are known. This package writes them first;
		// another program may write them later, and then they are searched first.
		d.i, d.rec, d.version, d.onlyHead = 0, Record{}, 0, true
		if err = d.fields(); err == nil && d.readable() {
			d.i, d.onlyHead, d.headRead = 0, false, true
			err = d.fields()
		}
	}
	if err == nil {
		err = d.end()
	}
	switch {
	case err != nil:
		return err
	case d.seen&hasVersion == 0:
		return d.fail("no schema version \"v\"")
	case d.version > newestSchema:
		return &SchemaError{Version: d.version}
	case d.version < oldestSchema:
		return d.fail("schema version " + strconv.FormatUint(d.version, 10) + ", of before tokens were tickets")
	case d.rec.Kind == "":
		return d.fail("no kind")
	case d.rec.rules() == nil:
		return &SchemaError{Version: d.version, Kind: d.rec.Kind}
	}
	if err := d.rec.rules().validate(d); err != nil {
		return err
	}
	return d.unique()
}

// errFieldBeforeHead says that a field came before version and kind.
var errFieldBeforeHead = errors.New("record: version and kind come late")

func (d *decoder) fields() error {
	f := fields{d: d}
	for f.pass() {
		d.rec.fields(&f, 0)
	}
	d.seen, d.missing = f.seen, f.missing()
	return f.err
}

// readable reports whether this version reads records of this version and kind.
func (d *decoder) readable() bool {
	return d.version >= oldestSchema && d.version <= newestSchema && d.rec.rules() != nil
}

// head reads version and kind. It reports whether the fields behind them can be read, and makes the body for them. Of a
// record that this version can't read, it only checks that it is JSON.
func (d *decoder) head(f *fields) bool {
	readField(f, `,"v":`, &d.version, (*decoder).exact)
	if d.version <= newestSchema {
		readField(f, `,"kind":`, (*string)(&d.rec.Kind), (*decoder).string)
	}
	const head = hasVersion | hasKind
	both := f.seen&head == head
	switch {
	case d.headRead, both && !d.onlyHead && d.readable():
		if d.rec.Body == nil && d.rec.Kind != KindLock {
			d.rec.rules().initBody(&d.rec, new(Op)) // a lock gets no body
		}
		return true
	case f.key == nil, string(f.key) == "v", string(f.key) == "kind" && d.version <= newestSchema: // the next pass reads it
	case both, d.onlyHead, d.version > newestSchema:
		f.key, f.seen, f.err = nil, f.seen|begun, d.skip()
	default:
		f.fail(errFieldBeforeHead)
	}
	return false
}

func (d *decoder) hold() (time.Duration, error) { return d.duration(maxHold, time.Microsecond) }

func (d *decoder) entries(holders bool) (list []Entry, err error) {
	start := d.i
	var c compact
	err = d.array(func() error {
		e, err := d.entry(holders, &c)
		if len(list) == 1 && !holders { // two are read; the others have about their size, unless they are texts
			list = slices.Grow(list, max(2*(len(d.b)-d.i)/(d.i-start), bytes.Count(d.b[d.i:], []byte(`","`)))+1)
		}
		list = append(list, e)
		return err
	})
	return list, err
}

func (d *decoder) entry(holder bool, c *compact) (e Entry, err error) {
	d.space()
	start := d.i
	if d.i < len(d.b) && d.b[d.i] == '"' {
		text, err := d.text()
		ok := err == nil && d.version >= compactSchema
		if ok {
			e, ok = c.read(text, d.rec.Kind)
		}
		if !ok {
			return e, d.failAt(start, "this text is no entry of schema 4")
		}
		return e, nil
	}
	f := fields{d: d}
	for f.pass() {
		e.fields(&f, d.rec.Kind, holder)
	}
	switch err = f.err; {
	case err != nil:
	case f.missing():
		err = d.failAt(start, "an entry needs id, ttl, token (holders) or queued (waiters), and mode or what its kind has instead")
	case e.Convert.ID != "" && e.Converted != "": // Apply reserves room for one of them
		err = d.failAt(start, "an entry has convert or converted, not both")
	case e.Convert.ID+e.Converted != "" && LeaseOf(e.Convert.ID+e.Converted) != e.Lease():
		err = d.failAt(start, "a conversion stands under another lease than its holder")
	}
	return e, err
}

func (d *decoder) conversion() (c Conversion, err error) {
	f := fields{d: d}
	for f.pass() {
		c.fields(&f)
	}
	if f.err == nil && f.missing() {
		return c, d.fail("a conversion needs id, mode and queued")
	}
	return c, f.err
}

func (d *decoder) name() (name string, err error) {
	if name, err = d.string(); err == nil && name == "" {
		err = d.fail("empty text where a name is expected")
	}
	return name, err
}

func (d *decoder) id() (id string, err error) {
	if id, err = d.string(); err == nil && LeaseOf(id) == "" {
		return id, d.fail("id is not <lease>.<sequence>")
	}
	return id, err
}

func (d *decoder) mode() (Mode, error) {
	name, err := d.text()
	m := modeOf(name)
	if err == nil && m == None {
		return m, d.fail("unknown mode")
	}
	return m, err
}

// duration reads a positive number of units.
func (d *decoder) duration(longest, unit time.Duration) (time.Duration, error) {
	n, err := d.positive(uint64(longest / unit))
	return time.Duration(n) * unit, err
}

func (d *decoder) ttl() (time.Duration, error) { return d.duration(maxTTL, time.Millisecond) }

func (d *decoder) since() (time.Time, error) {
	ms, err := d.exact()
	return time.UnixMilli(int64(ms)).UTC(), err
}

// exact reads a number that is exact in every JSON reader.
func (d *decoder) exact() (uint64, error) { return d.uint(maxSince) }

func (d *decoder) positive(limit uint64) (uint64, error) {
	n, err := d.uint(limit)
	if err == nil && n == 0 {
		return 0, d.fail("0 where a number above 0 is expected")
	}
	return n, err
}

func (d *decoder) number() (uint64, error) { return d.positive(math.MaxUint64) }

func (d *decoder) count() (int, error) {
	n, err := d.positive(math.MaxInt32)
	return int(n), err
}

func (d *decoder) token() (token uint64, err error) {
	digits, err := d.text()
	if err != nil {
		return 0, err
	}
	if token, err = strconv.ParseUint(string(digits), 10, 63); err != nil || len(digits) != tokenWidth {
		return 0, d.fail("a token has 20 digits and fits 63 bits")
	}
	return token, nil
}

func (d *decoder) meta() (meta map[string]string, err error) {
	err = d.object(func(key []byte) (err error) {
		if _, twice := meta[string(key)]; twice {
			return d.failAt(d.keyAt, "field stands twice")
		}
		if meta == nil {
			meta = make(map[string]string)
		}
		name := string(key)
		meta[name], err = d.string()
		return err
	})
	return meta, err
}

func (d *decoder) value() (Value, error) {
	text, err := d.string()
	return Value{Set: true, Data: text}, err
}

// data reads a value in base64.
func (d *decoder) data() (Value, error) {
	text, err := d.text()
	if err != nil {
		return Value{}, err
	}
	data, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return Value{}, d.fail("data is not base64")
	}
	return Value{Set: true, Data: string(data)}, nil
}

// unique refuses an id that occurs twice, in one list or in two.
func (d *decoder) unique() error {
	waiting := d.rec.queued()
	n := len(d.rec.Holders) + waiting
	switch {
	case waiting > MaxWaiters:
		return d.fail("more waiters than tickets")
	case n < 2:
		return nil
	}
	ids := make(map[string]bool, n)
	for e := range d.rec.entries() {
		if ids[e.ID] {
			return d.fail("id " + e.ID + " stands twice")
		}
		ids[e.ID] = true
	}
	return nil
}
