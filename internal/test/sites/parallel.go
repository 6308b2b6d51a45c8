package sites

import (
	"flag"
	"runtime"
	"strconv"
)

// RunMoreAtOnce has more parallel tests run at once than there are processors, unless -parallel
// says how many: most tests on servers wait, for a lease to run out or for an answer. It is for
// TestMain.
func RunMoreAtOnce() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0)))
	}
}
