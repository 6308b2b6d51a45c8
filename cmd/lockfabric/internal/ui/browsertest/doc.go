// Package browsertest tests the page of package ui in a real browser, Chromium without
// a window. It is a module of its own, so that the driver stays out of lockfabric's.
package browsertest
