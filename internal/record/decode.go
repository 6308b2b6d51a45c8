package record

import (
	"bytes"
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

// The fields of a record and of an entry, as bits of what has been seen.
const (
	hasVersion = 1 << iota
	hasKind
	hasHolders
	hasWaiters
	hasID
	hasMode
	hasOwner
	hasToken
	hasTTL
	hasSince
	hasRevoked
	hasLetTurn
	hasMeta
	hasConvert
	hasConverted
	hasHold
	hasPermits
	hasRefused
	hasGen
	hasActs
	hasLeaving
	hasValue
	hasProclaim
	hasSignalled
	hasAll
	hasSignal
	hasLife
	hasBody // and all bits above, for the fields of bodies
)

// hasEverywhere are the fields that every entry can have, and needs.
const (
	hasEverywhere = hasID | hasOwner | hasToken | hasTTL | hasSince | hasMeta
	needsAlways   = hasID | hasToken | hasTTL
)

type decoder struct {
	scanner
	rec      Record
	version  uint64
	seen     uint
	leases   []string // of the ids in a barrier
	headRead bool     // version and kind are known, because head was called: they come after other fields
}

func (d *decoder) record() error {
	err := d.fields()
	if errors.Is(err, errFieldBeforeHead) {
		// Version and kind decide which fields are known. This package writes them first;
		// another program may write them later, and then they are searched first.
		d.i, d.seen, d.rec = 0, 0, Record{}
		if err = d.head(); err == nil && d.version >= oldestSchema && d.version <= newestSchema && d.rec.rules() != nil {
			d.i, d.seen, d.headRead = 0, 0, true
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

// head reads version and kind, at any position.
func (d *decoder) head() error {
	return d.object(func(key []byte) error {
		if known, err := d.headField(key); known {
			return err
		}
		return d.skip()
	})
}

func (d *decoder) headField(key []byte) (known bool, err error) {
	switch string(key) {
	case "v":
		return true, field(d, &d.seen, hasVersion, &d.version, d.exact)
	case "kind":
		if d.version > newestSchema {
			return true, d.skip()
		}
		err = field(d, &d.seen, hasKind, (*string)(&d.rec.Kind), d.string)
		if k := d.rec.rules(); err == nil && k != nil && d.rec.Body == nil && d.rec.Kind != KindLock {
			k.initBody(&d.rec, new(Op)) // a lock gets no body
		}
		return true, err
	}
	return false, nil
}

// fields reads all fields of a record whose version and kind come first, or are known. For a record that
// this version can't read it only checks that it is JSON.
func (d *decoder) fields() error {
	return d.object(func(key []byte) error {
		if known, err := d.headField(key); known {
			return err
		}
		both := d.seen&hasVersion != 0 && d.seen&hasKind != 0
		switch {
		case d.version > newestSchema, both && (d.version < oldestSchema || d.rec.rules() == nil):
			return d.skip()
		case !both && !d.headRead:
			return errFieldBeforeHead
		}
		switch string(key) {
		case "hold_us":
			return field(d, &d.seen, hasHold, &d.rec.Hold, d.hold)
		case "life":
			if d.rec.Kind != KindLock {
				return field(d, &d.seen, hasLife, &d.rec.Life, d.number)
			}
		case "holders":
			return d.readOnce(&d.seen, hasHolders, func() error { return d.entries(&d.rec.Holders, true) })
		case "waiters":
			return d.readOnce(&d.seen, hasWaiters, func() error { return d.entries(&d.rec.Waiters, false) })
		}
		if known, err := d.rec.rules().decodeField(d, key); known {
			return err
		}
		return d.failAt(d.keyAt, "unknown field")
	})
}

func (d *decoder) hold() (time.Duration, error) { return d.duration(maxHold, time.Microsecond) }

func (d *decoder) entries(list *[]Entry, holders bool) error {
	start := d.i
	var c compact
	return d.array(func() error {
		e, err := d.entry(holders, &c)
		if len(*list) == 1 && !holders { // two are read; the others have about their size, unless they are texts
			*list = slices.Grow(*list, max(2*(len(d.b)-d.i)/(d.i-start), bytes.Count(d.b[d.i:], []byte(`","`)))+1)
		}
		*list = append(*list, e)
		return err
	})
}

func (d *decoder) entry(holder bool, c *compact) (e Entry, err error) {
	d.space()
	start := d.i
	var seen uint
	if d.i < len(d.b) && d.b[d.i] == '"' {
		text, err := d.text()
		ok := err == nil && d.version >= compactSchema
		if ok {
			e, seen, ok = c.read(text)
		}
		if !ok {
			return e, d.failAt(start, "this text is no entry of schema 4")
		}
		return e, d.complete(&e, start, seen, holder)
	}
	err = d.object(func(key []byte) error {
		switch string(key) {
		case "id":
			return field(d, &seen, hasID, &e.ID, d.id)
		case "mode":
			return field(d, &seen, hasMode, &e.Mode, d.mode)
		case "owner":
			return field(d, &seen, hasOwner, &e.Owner, d.string)
		case "ttl":
			return field(d, &seen, hasTTL, &e.TTL, d.ttl)
		case "since":
			return field(d, &seen, hasSince, &e.Since, d.since)
		case "meta":
			return field(d, &seen, hasMeta, &e.Meta, d.meta)
		case "token", "queued":
			if (key[0] == 't') == holder {
				return field(d, &seen, hasToken, &e.Token, d.token)
			}
		case "convert":
			if holder {
				return field(d, &seen, hasConvert, &e.Convert, d.conversion)
			}
		case "converted":
			if holder {
				return field(d, &seen, hasConverted, &e.Converted, d.id)
			}
		case "revoked":
			if holder {
				return field(d, &seen, hasRevoked, &e.Revoked, d.bool)
			}
		case "turn":
			return field(d, &seen, hasLetTurn, &e.LetTurn, d.bool)
		}
		if known, err := d.kindField(key, &e, &seen); known {
			return err
		}
		return d.failAt(d.keyAt, "unknown field")
	})
	if err == nil {
		err = d.complete(&e, start, seen, holder)
	}
	return e, err
}

// complete refuses an entry that lacks a field, or has a field of another kind. start is its offset.
func (d *decoder) complete(e *Entry, start int, seen uint, holder bool) (err error) {
	required, allowed := d.rec.rules().fields(holder)
	switch {
	case seen&(needsAlways|required) != needsAlways|required:
		err = d.failAt(start, "an entry needs id, ttl, token (holders) or queued (waiters), and mode or what its kind has instead")
	case seen&^(hasEverywhere|required|allowed) != 0:
		err = d.failAt(start, "an entry has a field of another kind")
	}
	if err == nil && seen&(hasConvert|hasConverted) != 0 {
		// Apply reserves room for this much, and writes no more.
		switch {
		case seen&hasConvert != 0 && seen&hasConverted != 0:
			err = d.failAt(start, "an entry has convert or converted, not both")
		case LeaseOf(e.Convert.ID+e.Converted) != e.Lease():
			err = d.failAt(start, "a conversion stands under another lease than its holder")
		}
	}
	return err
}

// conversion reads the conversion of a holder.
func (d *decoder) conversion() (c Conversion, err error) {
	d.space()
	start := d.i
	var seen uint
	err = d.object(func(key []byte) error {
		switch string(key) {
		case "id":
			return field(d, &seen, hasID, &c.ID, d.id)
		case "mode":
			return field(d, &seen, hasMode, &c.Mode, d.mode)
		case "queued":
			return field(d, &seen, hasToken, &c.Queued, d.token)
		}
		return d.failAt(d.keyAt, "unknown field")
	})
	if err == nil && seen != hasID|hasMode|hasToken {
		err = d.failAt(start, "a conversion needs id, mode and queued")
	}
	return c, err
}

// readOnce reads a field's value, unless the field has occurred before.
func (d *decoder) readOnce(seen *uint, bit uint, read func() error) error {
	if *seen&bit != 0 {
		return d.failAt(d.keyAt, "field stands twice")
	}
	*seen |= bit
	return read()
}

// field is readOnce for a value that is stored at v.
func field[T any](d *decoder, seen *uint, bit uint, v *T, read func() (T, error)) error {
	return d.readOnce(seen, bit, func() (err error) {
		*v, err = read()
		return err
	})
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

// positive reads a number above 0.
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
