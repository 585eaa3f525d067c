"""Makes ``twistd flowstack`` known to Twisted."""

from twisted.application.service import ServiceMaker

flowstack = ServiceMaker("Flowstack", "flowstack.tap", "Flowstack, the proxy in front of the OpenAI API.", "flowstack")
