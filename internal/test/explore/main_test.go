package explore

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !*long {
		debug.SetGCPercent(400) // most of a state lives as long as its layer
	}
	os.Exit(m.Run())
}
