package clock

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Nothing else can show it without putting the host to sleep.
func TestHolderCountsSleep(t *testing.T) {
	if k, ok := Holder().(kernel); !ok || k.id != unix.CLOCK_MONOTONIC_RAW {
		t.Fatalf("holder's clock is %#v, want the kernel's CLOCK_MONOTONIC_RAW", Holder())
	}
}
