package lease_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/lockfabric/lockfabric/internal/lease"
)

const testID = "AbCdEfGhIjKlMnOpQrStUv"

const (
	liveValue = `{"v":1,"id":"AbCdEfGhIjKlMnOpQrStUv","state":"live","ttl":30000,"margin":1500,"host":"a","pid":1,` +
		`"label":"x","started":1700000000000,"nonce":"n","seen":1790000000000000}`
	deadValue = `{"v":1,"id":"AbCdEfGhIjKlMnOpQrStUv","state":"dead","reason":"expired","by":"b:2","at":1700000000000,` +
		`"ttl":30000,"margin":1500,"host":"a","pid":1,"label":"x"}`
)

func TestDecode(t *testing.T) {
	live, err := lease.Decode(testID, []byte(liveValue))
	if err != nil || live.Dead || live.TTL != 30*sec || live.Margin != 1500*ms || live.Nonce != "n" ||
		live.Seen[0] != 1790000000000000 || live.Started.UnixMilli() != 1700000000000 {
		t.Errorf("live: %+v, %v", live, err)
	}
	dead, err := lease.Decode(testID, []byte(deadValue))
	if err != nil || !dead.Dead || dead.By != "b:2" || dead.Reason != lease.ReasonExpired || dead.Host != "a" ||
		dead.At.UnixMilli() != 1700000000000 {
		t.Errorf("dead: %+v, %v", dead, err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for name, c := range map[string]struct {
		from, old, new string
		want           error
	}{
		"newer":             {liveValue, `"v":1`, `"v":2`, lease.ErrNewerSchema},
		"newer, new fields": {liveValue, `"v":1`, `"v":2,"more":{}`, lease.ErrNewerSchema},
		"no version":        {liveValue, `"v":1,`, ``, lease.ErrMalformed},
		"unknown field":     {liveValue, `"v":1`, `"v":1,"more":1`, lease.ErrMalformed},
		"two values":        {liveValue, `}`, `}{}`, lease.ErrMalformed},
		"cut short":         {liveValue, `}`, ``, lease.ErrMalformed},
		"another's id":      {liveValue, `"AbC`, `"XbC`, lease.ErrMalformed},
		"unknown state":     {liveValue, `"live"`, `"LIVE"`, lease.ErrMalformed},
		"no ttl":            {liveValue, `"ttl":30000`, `"ttl":0`, lease.ErrMalformed},
		"ttl too short":     {liveValue, `"ttl":30000`, `"ttl":99`, lease.ErrMalformed},
		"ttl for ever":      {liveValue, `"ttl":30000`, `"ttl":9000000000000000`, lease.ErrMalformed},
		"no margin":         {liveValue, `"margin":1500,`, ``, lease.ErrMalformed},
		"margin too large":  {liveValue, `"margin":1500`, `"margin":8000`, lease.ErrMalformed},
		"live, no nonce":    {liveValue, `,"nonce":"n"`, ``, lease.ErrMalformed},
		"live, buried":      {liveValue, `"nonce"`, `"by":"b","nonce"`, lease.ErrMalformed},
		"dead, no writer":   {deadValue, `"by":"b:2",`, ``, lease.ErrMalformed},
		"dead, nonce":       {deadValue, `"by"`, `"nonce":"n","by"`, lease.ErrMalformed},
		"negative pid":      {deadValue, `"pid":1`, `"pid":-1`, lease.ErrMalformed},
		"long text":         {deadValue, `"label":"x"`, `"label":"` + strings.Repeat("x", 257) + `"`, lease.ErrMalformed},
		"no JSON":           {liveValue, liveValue, `live`, lease.ErrMalformed},
		"empty":             {liveValue, liveValue, ``, lease.ErrMalformed},
	} {
		value := strings.Replace(c.from, c.old, c.new, 1)
		if value == c.from {
			t.Fatalf("%s: changes nothing", name)
		}
		if i, err := lease.Decode(testID, []byte(value)); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, i, err)
		}
	}
}

func TestValidID(t *testing.T) {
	if !lease.ValidID(testID) || !lease.ValidID(testID+"-1") || lease.ValidID(testID+"-") || lease.ValidID(testID+"-01") || lease.ValidID(testID+"-x") {
		t.Error("refused")
	}
	for _, id := range []string{"", testID[1:], testID + "x", "AbCdEfGhIjKlMnOpQrSt.>", "AbCdEfGhIjKlMnOpQrSté"} {
		if lease.ValidID(id) {
			t.Errorf("%q accepted", id)
		}
	}
}

// Whatever the name of a holder, its tombstone must be readable, or nobody would
// see that it is one.
func TestTombstoneIsReadableWhateverTheLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, label := range []string{strings.Repeat("\u2028", 85), "<&>\"\\\x00", strings.Repeat("\x01", 256)} {
			b := newBucket()
			l := create(t, b, lease.Config{Label: label})
			if i := b.info(t, l.ID()); i.Label != label {
				t.Errorf("label %q became %q", label, i.Label)
			}
			if err := l.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			if i := b.info(t, l.ID()); !i.Dead || i.Label != label || i.PID == 0 || i.TTL != l.TTL() {
				t.Errorf("tombstone %+v", i)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(liveValue))
	f.Add([]byte(deadValue))
	f.Add([]byte(`{"v":1e3}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		i, err := lease.Decode(testID, value)
		if err != nil {
			if !errors.Is(err, lease.ErrMalformed) && !errors.Is(err, lease.ErrNewerSchema) {
				t.Fatalf("error without a class: %v", err)
			}
			return
		}
		if i.ID != testID || i.TTL < lease.MinTTL || i.TTL > lease.MaxTTL || i.Margin <= 0 || i.Margin > i.TTL/4 {
			t.Fatalf("accepted %+v", i)
		}
		if !json.Valid(value) {
			t.Fatal("accepted what is no JSON")
		}
	})
}
