package deadlock

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Version is the version of a document that this package writes.
const Version = 1

// Bounds of a document.
const (
	MaxDoc   = 64 << 10 // bytes
	MaxHolds = 256      // of one unit; beyond that All
)

// Doc is what the units of work of one lease say while they hold something and wait for long. Its key in the
// bucket of waits is the lease's id.
type Doc struct {
	Version int    `json:"v"`
	Units   []Unit `json:"units"`         // that hold or wait under the lease, the one that has waited longest first
	Cut     bool   `json:"cut,omitempty"` // there are more than fit
}

// Unit is a unit of work.
type Unit struct {
	Unit   string   `json:"unit"`
	Owner  string   `json:"owner,omitempty"`
	Deaths int      `json:"deaths,omitempty"` // how often it was a victim
	Waits  []Wait   `json:"waits"`
	Holds  []string `json:"holds,omitempty"` // ids of entries, under this lease and others
	All    bool     `json:"all,omitempty"`   // it holds too many to list: every entry of the lease counts
}

// Wait is an acquire or a conversion that waits.
type Wait struct {
	Key    string      `json:"key"` // encoded
	ID     string      `json:"id"`
	Mode   record.Mode `json:"mode"`
	Queued uint64      `json:"queued,omitempty"` // the revision at which it queued
	Back   bool        `json:"back,omitempty"`   // its process holds it back: it goes to the end of the queue later
}

// DecodeDoc reads a stored document. What can't be read, or is of a newer version, says nothing.
func DecodeDoc(value []byte) (*Doc, error) {
	var d Doc
	if err := json.Unmarshal(value, &d); err != nil {
		return nil, err
	}
	if d.Version != Version {
		return nil, fmt.Errorf("version %d", d.Version)
	}
	return &d, nil
}

// encode returns the document of the units, as many as fit, and its stored form.
func encode(units []Unit) (*Doc, []byte) {
	d := &Doc{Version: Version, Units: units}
	for {
		value, err := json.Marshal(d)
		if err != nil {
			return nil, nil // a mode that is none
		}
		if len(value) <= MaxDoc {
			return d, value
		}
		d.Units, d.Cut = d.Units[:len(d.Units)*3/4], true
	}
}

func (u *Unit) waits(id string) bool {
	return slices.ContainsFunc(u.Waits, func(w Wait) bool { return w.ID == id })
}

// behind yields the units that the entry belongs to.
func (d *Doc) behind(e *record.Entry) (units []*Unit) {
	if d == nil {
		return nil
	}
	for i := range d.Units {
		u := &d.Units[i]
		if u.All || slices.Contains(u.Holds, e.ID) || u.waits(e.ID) || e.Convert.ID != "" && u.waits(e.Convert.ID) {
			units = append(units, u)
		}
	}
	return units
}

// sooner orders units by who is to be the victim: the one that was a victim least often, of these the one whose
// wait is youngest. It depends on committed data alone and no two units are equal, so all pick the same.
func sooner(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.unit.Deaths, b.unit.Deaths), cmp.Compare(b.queued(), a.queued()), cmp.Compare(b.unit.Unit, a.unit.Unit))
}

// candidate is a unit with that wait of it which is in a circle.
type candidate struct {
	unit *Unit
	wait Wait
}

// queued is the age of the wait; one that does not stand in the record yet is the youngest.
func (c candidate) queued() uint64 {
	if c.wait.Queued == 0 {
		return 1<<64 - 1
	}
	return c.wait.Queued
}
