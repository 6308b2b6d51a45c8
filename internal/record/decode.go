package record

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"time"
)

// Decode reads a stored record. It is strict, since whatever it took but didn't understand would be
// lost when the record is written again: an unknown or missing field, a field or an id that stands
// twice, an unknown mode, a bad id or number, text that is no UTF-8, data behind the end and an
// empty value are ErrMalformed. White space and the order of fields don't matter.
//
// A schema version above this package's, or a kind that it doesn't know, is ErrNewerSchema, whatever
// the other fields are.
//
// Tokens are returned as stored: call Resolve with the revision the value was read at.
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
	rec     Record
	version uint64
	seen    uint
	leases  []string // of a barrier's ids
	late    bool     // version and kind are known, though they come behind other fields
}

func (d *decoder) record() error {
	err := d.fields()
	if errors.Is(err, errLate) {
		// Which fields are known depends on version and kind. They come first in what this package writes;
		// from another hand they may come later, and are looked for first then.
		d.i, d.seen, d.rec = 0, 0, Record{}
		if err = d.head(); err == nil && d.version >= oldestSchema && d.version <= newestSchema && d.rec.rules() != nil {
			d.i, d.seen, d.late = 0, 0, true
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
	if err := d.rec.rules().whole(d); err != nil {
		return err
	}
	return d.unique()
}

// errLate says that a field came before version and kind.
var errLate = errors.New("record: version and kind come late")

// head reads version and kind, wherever they stand.
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
		return true, d.once(&d.seen, hasVersion, func() (err error) {
			d.version, err = d.uint(maxSince)
			return err
		})
	case "kind":
		if d.version > newestSchema {
			return true, d.skip()
		}
		return true, d.str(&d.seen, hasKind, (*string)(&d.rec.Kind))
	}
	return false, nil
}

// fields reads all fields of a record whose version and kind come first, or are known. Of a record that
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
		case !both && !d.late:
			return errLate
		}
		switch string(key) {
		case "hold_us":
			return d.once(&d.seen, hasHold, d.hold)
		case "life":
			if d.rec.Kind != KindLock {
				return d.number(&d.seen, hasLife, &d.rec.Life)
			}
		case "holders":
			return d.once(&d.seen, hasHolders, func() error { return d.entries(&d.rec.Holders, true) })
		case "waiters":
			return d.once(&d.seen, hasWaiters, func() error { return d.entries(&d.rec.Waiters, false) })
		}
		if known, err := d.rec.rules().body(d, key); known {
			return err
		}
		return d.failAt(d.keyAt, "unknown field")
	})
}

func (d *decoder) hold() error {
	us, err := d.uint(uint64(maxHold / time.Microsecond))
	d.rec.Hold = time.Duration(us) * time.Microsecond
	if err == nil && us == 0 {
		return d.fail("hold_us is 0")
	}
	return err
}

func (d *decoder) entries(list *[]Entry, holders bool) error {
	start := d.i
	var c compact
	return d.array(func() error {
		e, err := d.entry(holders, &c)
		if len(*list) == 1 && !holders { // two are read; the others have about their size, unless these are texts
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
			return d.once(&seen, hasID, func() error { return d.id(&e.ID) })
		case "mode":
			return d.once(&seen, hasMode, func() error { return d.mode(&e.Mode) })
		case "owner":
			return d.str(&seen, hasOwner, &e.Owner)
		case "ttl":
			return d.once(&seen, hasTTL, func() error { return d.ttl(&e.TTL) })
		case "since":
			return d.once(&seen, hasSince, func() error {
				ms, err := d.uint(maxSince)
				e.Since = time.UnixMilli(int64(ms)).UTC()
				return err
			})
		case "meta":
			return d.once(&seen, hasMeta, func() error { return d.meta(&e) })
		case "token", "queued":
			if (key[0] == 't') == holder {
				return d.revision(&seen, hasToken, &e.Token)
			}
		case "convert":
			if holder {
				return d.once(&seen, hasConvert, func() error { return d.conversion(&e.Convert) })
			}
		case "converted":
			if holder {
				return d.once(&seen, hasConverted, func() error { return d.id(&e.Converted) })
			}
		case "revoked":
			if holder {
				return d.flag(&seen, hasRevoked, &e.Revoked)
			}
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

// complete refuses an entry that lacks a field, or has one of another kind. start is where it begins.
func (d *decoder) complete(e *Entry, start int, seen uint, holder bool) (err error) {
	required, allowed := d.rec.rules().fields(holder)
	switch {
	case seen&(needsAlways|required) != needsAlways|required:
		err = d.failAt(start, "an entry needs id, ttl, token (holders) or queued (waiters), and mode or what its kind has instead")
	case seen&^(hasEverywhere|required|allowed) != 0:
		err = d.failAt(start, "an entry has a field of another kind")
	}
	if err == nil && seen&(hasConvert|hasConverted) != 0 {
		// What Apply has reserved room for, and what it writes.
		switch {
		case seen&hasConvert != 0 && seen&hasConverted != 0:
			err = d.failAt(start, "an entry has convert or converted, not both")
		case LeaseOf(e.Convert.ID+e.Converted) != e.Lease():
			err = d.failAt(start, "a conversion stands under another lease than its holder")
		}
	}
	return err
}

// conversion reads what a holder waits for.
func (d *decoder) conversion(c *Conversion) error {
	d.space()
	start := d.i
	var seen uint
	err := d.object(func(key []byte) error {
		switch string(key) {
		case "id":
			return d.once(&seen, hasID, func() error { return d.id(&c.ID) })
		case "mode":
			return d.once(&seen, hasMode, func() error { return d.mode(&c.Mode) })
		case "queued":
			return d.revision(&seen, hasToken, &c.Queued)
		}
		return d.failAt(d.keyAt, "unknown field")
	})
	if err == nil && seen != hasID|hasMode|hasToken {
		err = d.failAt(start, "a conversion needs id, mode and queued")
	}
	return err
}

// once reads a field's value, unless the field was there before.
func (d *decoder) once(seen *uint, field uint, read func() error) error {
	if *seen&field != 0 {
		return d.failAt(d.keyAt, "field stands twice")
	}
	*seen |= field
	return read()
}

func (d *decoder) id(id *string) (err error) {
	if *id, err = d.string(); err == nil && LeaseOf(*id) == "" {
		return d.fail("id is not <lease>.<sequence>")
	}
	return err
}

func (d *decoder) mode(m *Mode) error {
	name, err := d.text()
	if *m = modeOf(name); err == nil && *m == None {
		return d.fail("unknown mode")
	}
	return err
}

func (d *decoder) ttl(ttl *time.Duration) error {
	ms, err := d.uint(uint64(maxTTL / time.Millisecond))
	if *ttl = time.Duration(ms) * time.Millisecond; err == nil && ms == 0 {
		return d.fail("ttl is 0")
	}
	return err
}

func (d *decoder) token() (token uint64, err error) {
	digits, err := d.text()
	if err != nil {
		return 0, err
	}
	if len(digits) != tokenWidth || string(digits) > "09223372036854775807" {
		return 0, d.fail("a token has 20 digits and fits 63 bits")
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, d.fail("a token has 20 digits and fits 63 bits")
		}
		token = token*10 + uint64(c-'0')
	}
	return token, nil
}

func (d *decoder) meta(e *Entry) error {
	return d.object(func(key []byte) error {
		if _, twice := e.Meta[string(key)]; twice {
			return d.failAt(d.keyAt, "field stands twice")
		}
		v, err := d.string()
		if err != nil {
			return err
		}
		if e.Meta == nil {
			e.Meta = make(map[string]string)
		}
		e.Meta[string(key)] = v
		return nil
	})
}

// unique refuses an id that stands twice, in one list or in two.
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
