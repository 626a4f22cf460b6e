from setuptools import setup

setup(name='mm_ummae', version='0.1.0', packages=['mm_ummae'])
