package record

import (
	"errors"
	"fmt"
)

var (
	// ErrNewerSchema is returned by Decode for a record that a newer version of this project
	// wrote: with a newer schema, or with a kind that this version doesn't know. It is a *SchemaError. Upgrade this process; nothing was changed.
	ErrNewerSchema = errors.New("record: written by a newer version; upgrade this process")

	// ErrMalformed is returned by Decode for a value that is not a record: not JSON, an unknown or a missing field, a
	// duplicate or bad id, an unknown mode, data after the end. It is a *MalformedError with the reason and the position.
	// Another program wrote this key: look at it with `nats kv get`, and repair or delete it by hand.
	ErrMalformed = errors.New("record: malformed")

	// ErrInvalidMode is returned by ParseMode and by the text methods of Mode for anything but
	// IS, IX, S, SIX, U and X.
	ErrInvalidMode = errors.New("record: invalid lock mode; use one of IS, IX, S, SIX, U, X")
)

// SchemaError is the error for a record whose schema this version doesn't know. errors.Is(err, ErrNewerSchema) holds.
type SchemaError struct {
	Version uint64 // the record's "v"
	Kind    Kind   // its kind, if the kind is what this version doesn't know
}

func (e *SchemaError) Error() string {
	if e.Kind != "" {
		return fmt.Sprintf("record: kind %q was written by a newer version; upgrade this process", e.Kind)
	}
	return fmt.Sprintf("record: schema version %d was written by a newer version (this one reads up to %d); upgrade this process",
		e.Version, newestSchema)
}

// Is reports whether target is ErrNewerSchema.
func (e *SchemaError) Is(target error) bool { return target == ErrNewerSchema }

// MalformedError says what is wrong with a value, and where. errors.Is(err, ErrMalformed) holds.
type MalformedError struct {
	Offset int    // bytes from the start of the value
	Reason string // what was found or missing
}

func (e *MalformedError) Error() string {
	return fmt.Sprintf("record: malformed at byte %d: %s", e.Offset, e.Reason)
}

// Is reports whether target is ErrMalformed.
func (e *MalformedError) Is(target error) bool { return target == ErrMalformed }
