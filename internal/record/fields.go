package record

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"
)

// fields passes over the fields of one JSON object, in their stored order. To write, it appends those that are set. To
// read, it compares each with the input. So each object lists its fields once, in a method fields, with their names as
// they are stored: `,"id":`. If the input has them in another order or with white space, it takes more passes.
type fields struct {
	out []byte   // what was written
	d   *decoder // nil = write

	// Of an object that is read.
	key    []byte // of the next value, if a pass did not find it
	n      uint   // the number of the field at hand
	seen   uint   // a bit for each field
	needed uint
	err    error
}

// begun is the bit of seen that says that a value was passed.
const begun = 1

// pass begins a pass of reading. It returns false behind the last field, and on an error.
func (f *fields) pass() bool {
	first := f.n == 0
	switch {
	case f.err != nil:
	case f.key != nil:
		f.fail(f.d.failAt(f.d.keyAt, "unknown field"))
	case !first:
		f.key, f.err = f.d.nextKey(f.seen&begun == 0)
	case !f.d.take('{'):
		f.fail(f.d.fail("expected an object"))
	}
	if f.err != nil || f.key == nil && !first {
		return false
	}
	f.n, f.needed = 0, 0
	return true
}

// fail ends the reading with an error, unless there is one already.
func (f *fields) fail(err error) {
	if f.err == nil {
		f.key, f.err = nil, err
	}
}

// comes reports whether the next value to read is of this field.
func (f *fields) comes(name string) bool {
	f.n++
	switch d := f.d; {
	case f.key != nil:
		if string(f.key) != name[2:len(name)-2] {
			return false
		}
		f.key = nil
	case f.err != nil, f.seen == 0 && f.n > 1:
		return false
	default:
		next := name
		if f.seen == 0 {
			next = name[1:] // no comma
		}
		if !d.starts(next) {
			return false
		}
		d.i += len(next)
		d.keyAt = d.i - len(name) + 1
	}
	if f.has() {
		f.fail(f.d.failAt(f.d.keyAt, "field stands twice"))
		return false
	}
	f.seen |= begun | 1<<f.n
	return true
}

// has reports whether the field at hand was read.
func (f *fields) has() bool { return f.seen>>f.n&1 != 0 }

// need says that the field at hand must not be missing.
func (f *fields) need() {
	if f.d != nil {
		f.needed |= 1 << f.n
	}
}

func (f *fields) missing() bool { return f.seen&f.needed != f.needed }

// field passes over one field. set is whether it has a value to write.
func field[T any](f *fields, name string, v *T, set bool, write func([]byte, T) []byte, read func(*decoder) (T, error)) {
	if f.d != nil {
		readField(f, name, v, read)
	} else if set {
		f.out = write(append(f.out, name...), *v)
	}
}

func readField[T any](f *fields, name string, v *T, read func(*decoder) (T, error)) {
	if f.comes(name) {
		x, err := read(f.d)
		*v, f.err = x, err
	}
}

// list passes over a field whose value is a list.
func list[T any](f *fields, name string, v *[]T, write func([]byte, T) []byte, read func(*decoder) (T, error)) {
	field(f, name, v, len(*v) > 0, func(dst []byte, v []T) []byte {
		return appendList(dst, "[]", len(v), func(dst []byte, i int) []byte { return write(dst, v[i]) })
	}, func(d *decoder) (v []T, err error) {
		err = d.array(func() error {
			e, err := read(d)
			v = append(v, e)
			return err
		})
		return v, err
	})
}

// close ends an object that was written from start on.
func (f *fields) close(start int) []byte {
	f.out[start] = '{' // instead of a comma
	return append(f.out, '}')
}

func (f *fields) number(name string, v *uint64) {
	field(f, name, v, *v != 0, appendUint, (*decoder).number)
}

func (f *fields) count(name string, v *int) {
	field(f, name, v, *v != 0, appendUint, (*decoder).count)
}

func (f *fields) flag(name string, v *bool) {
	field(f, name, v, *v, strconv.AppendBool, (*decoder).bool)
}

func (f *fields) text(name string, v *string) {
	if f.d != nil {
		readField(f, name, v, (*decoder).string)
	} else if *v != "" {
		f.out = appendString(append(f.out, name...), *v)
	}
}

func (f *fields) name(name string, v *string) {
	field(f, name, v, *v != "", appendString, (*decoder).name)
}

func (f *fields) id(name string, v *string) {
	if f.d != nil {
		readField(f, name, v, (*decoder).id)
	} else if *v != "" {
		f.out = appendPlain(append(f.out, name...), *v)
	}
}

func (f *fields) mode(v *Mode) {
	if f.d != nil {
		readField(f, `,"mode":`, v, (*decoder).mode)
	} else if *v != None {
		f.out = appendMode(append(f.out, `,"mode":`...), *v)
	}
	f.need()
}

func (f *fields) token(name string, v *uint64) {
	if f.d != nil {
		readField(f, name, v, (*decoder).token)
	} else {
		f.out = appendToken(append(f.out, name...), *v)
	}
	f.need()
}

// value is a field with one of two names: "value" if it is text, else "data" in base64.
func (f *fields) value(v *Value) {
	const text, data = `,"value":`, `,"data":`
	switch {
	case f.d != nil:
		readField(f, text, v, (*decoder).value)
		f.n-- // the same field
		readField(f, data, v, (*decoder).data)
	case v.Set && utf8.ValidString(v.Data):
		f.out = appendString(append(f.out, text...), v.Data)
	case v.Set:
		f.out = append(append(f.out, data...), '"')
		f.out = append(base64.StdEncoding.AppendEncode(f.out, []byte(v.Data)), '"')
	}
}
