package main

import (
	"bytes"
	"testing"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), &out, "")
	want := `global-lock is held in mode IX
bucket-lock is held in mode IX
object-lock is held in mode X
another object of the bucket is locked beside it
the bucket is refused while an object of it is locked
released, object-lock first and global-lock last
now the bucket is locked
`
	if err != nil || out.String() != want {
		t.Errorf("%v, printed\n%s\nwant\n%s", err, out.String(), want)
	}
}
