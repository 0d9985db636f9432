"""OpenAI's addresses on the same queue: a call is translated to a job, and its job back to what the SDKs expect.

Nothing here runs, queues or checks anything a second time: what a job may ask is decided where it is for `/v1/jobs`.
"""
