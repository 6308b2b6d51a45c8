package record

import "time"

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
)

type decoder struct {
	scanner
	rec     Record
	version uint64
	seen    uint
}

func (d *decoder) record() error {
	// Whether a field is known depends on version and kind. They come first in what this package
	// writes; from another hand the others may come before them, and wait for a second look.
	holdAt, holdersAt, waitersAt, unknownAt := -1, -1, -1, -1
	err := d.object(func(key []byte) error {
		switch string(key) {
		case "v":
			return d.once(&d.seen, hasVersion, func() (err error) {
				d.version, err = d.uint(maxSince)
				return err
			})
		case "kind":
			if d.version > schemaVersion {
				return d.skip()
			}
			return d.once(&d.seen, hasKind, func() error {
				kind, err := d.string()
				d.rec.Kind = Kind(kind)
				return err
			})
		case "hold_us":
			return d.once(&d.seen, hasHold, func() error {
				if d.known() {
					return d.hold()
				}
				holdAt = d.i
				return d.skip()
			})
		case "holders":
			return d.once(&d.seen, hasHolders, func() error { return d.list(&d.rec.Holders, true, &holdersAt) })
		case "waiters":
			return d.once(&d.seen, hasWaiters, func() error { return d.list(&d.rec.Waiters, false, &waitersAt) })
		}
		if unknownAt < 0 {
			unknownAt = d.keyAt
		}
		return d.skip()
	})
	if err != nil {
		return err
	}
	if err := d.end(); err != nil {
		return err
	}
	switch {
	case d.seen&hasVersion == 0:
		return d.fail("no schema version \"v\"")
	case d.version > schemaVersion:
		return &SchemaError{Version: d.version}
	case d.version == 0:
		return d.fail("schema version 0")
	case d.rec.Kind == "":
		return d.fail("no kind")
	case d.rec.rules() == nil:
		return &SchemaError{Version: d.version, Kind: d.rec.Kind}
	case unknownAt >= 0:
		return d.failAt(unknownAt, "unknown field")
	}
	if holdAt >= 0 {
		d.i = holdAt
		if err := d.hold(); err != nil {
			return err
		}
	}
	if holdersAt >= 0 {
		d.i = holdersAt
		if err := d.entries(&d.rec.Holders, true); err != nil {
			return err
		}
	}
	if waitersAt >= 0 {
		d.i = waitersAt
		if err := d.entries(&d.rec.Waiters, false); err != nil {
			return err
		}
	}
	return d.unique()
}

// known reports whether it is known already that the fields are those of this version and of a
// kind that it knows.
func (d *decoder) known() bool {
	return d.seen&hasVersion != 0 && d.version <= schemaVersion && d.rec.rules() != nil
}

func (d *decoder) hold() error {
	us, err := d.uint(uint64(maxHold / time.Microsecond))
	d.rec.Hold = time.Duration(us) * time.Microsecond
	if err == nil && us == 0 {
		return d.fail("hold_us is 0")
	}
	return err
}

// list reads entries if it is known already that these are known, else notes where they stand.
func (d *decoder) list(list *[]Entry, holders bool, at *int) error {
	if d.known() {
		return d.entries(list, holders)
	}
	*at = d.i
	return d.skip()
}

func (d *decoder) entries(list *[]Entry, holders bool) error {
	return d.array(func() error {
		e, err := d.entry(holders)
		*list = append(*list, e)
		return err
	})
}

func (d *decoder) entry(holder bool) (e Entry, err error) {
	d.space()
	start := d.i
	var seen uint
	err = d.object(func(key []byte) error {
		switch string(key) {
		case "id":
			return d.once(&seen, hasID, func() error { return d.id(&e.ID) })
		case "mode":
			return d.once(&seen, hasMode, func() error { return d.mode(&e.Mode) })
		case "owner":
			return d.once(&seen, hasOwner, func() (err error) {
				e.Owner, err = d.string()
				return err
			})
		case "ttl":
			return d.once(&seen, hasTTL, func() error {
				ms, err := d.uint(uint64(maxTTL / time.Millisecond))
				e.TTL = time.Duration(ms) * time.Millisecond
				if err == nil && ms == 0 {
					return d.fail("ttl is 0")
				}
				return err
			})
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
				return d.once(&seen, hasToken, func() (err error) {
					e.Token, err = d.token()
					return err
				})
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
				return d.once(&seen, hasRevoked, func() (err error) {
					e.Revoked, err = d.bool()
					return err
				})
			}
		}
		return d.failAt(d.keyAt, "unknown field")
	})
	const required = hasID | hasMode | hasToken | hasTTL
	if err == nil && seen&required != required {
		err = d.failAt(start, "an entry needs id, mode, ttl, and token (holders) or queued (waiters)")
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
	return e, err
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
			return d.once(&seen, hasToken, func() (err error) {
				c.Queued, err = d.token()
				return err
			})
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

func (d *decoder) token() (token uint64, err error) {
	digits, err := d.text()
	if err != nil {
		return 0, err
	}
	if len(digits) != tokenWidth || string(digits) > "18446744073709551615" {
		return 0, d.fail("a token has 20 digits and fits 64 bits")
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, d.fail("a token has 20 digits and fits 64 bits")
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

// unique refuses an id that stands twice, in one list or in both.
func (d *decoder) unique() error {
	n := len(d.rec.Holders) + len(d.rec.Waiters)
	if n < 2 {
		return nil
	}
	ids := make(map[string]bool, n)
	for _, list := range [][]Entry{d.rec.Holders, d.rec.Waiters} {
		for i := range list {
			if ids[list[i].ID] {
				return d.fail("id " + list[i].ID + " stands twice")
			}
			ids[list[i].ID] = true
		}
	}
	return nil
}
